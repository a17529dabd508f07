"""Refusals and failures."""

from gotohotel.domain import Conflict, NotFound


class PaymentNotFound(NotFound):
    """There is no such payment."""


class PaymentChanged(Conflict):
    """The payment was changed by another call at the same time; try again."""


class AttemptOpen(Conflict):
    """An attempt to charge the card is still open: what became of it has to be known first."""


class RefundPending(Conflict):
    """The card processor has not given the money back yet; the cancel stands and is carried through."""


class ProcessorUnavailable(Exception):
    """The card processor did not answer, or answered with an error: whether it acted is unknown."""
