"""Refusals and failures."""

from gotohotel.domain import Conflict, NotFound, TooMany


class PaymentNotFound(NotFound):
    """There is no such payment."""


class PaymentChanged(Conflict):
    """The payment was changed by another call at the same time; try again."""


class AttemptOpen(Conflict):
    """An attempt to charge the card is still open; its outcome must be known first."""


class TooManyAttempts(TooMany):
    """Too many cards were declined; try again later."""


class RefundPending(Conflict):
    """The card processor has not completed the refund yet; it will be retried automatically."""


class ProcessorUnavailable(Exception):
    """The card processor did not answer, or answered with an error: whether it acted is unknown."""
