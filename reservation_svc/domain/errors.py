"""What may be refused."""

from gotohotel.domain import Conflict, NotFound, WrongState


class ReservationNotFound(NotFound):
    """There is no such reservation."""


class ReservationChanged(Conflict):
    """The reservation was changed by somebody else at the same time; try again."""


class RoomTypeChangedMeanwhile(Conflict):
    """The room type was changed by somebody else at the same time; try again."""


class ReservationEnding(Conflict):
    """The reservation is being canceled or rejected at this moment; look again."""


class ReservationEnded(WrongState):
    """The reservation is canceled or rejected."""


class ReservationConfirmedAlready(WrongState):
    """The reservation is confirmed; it can be canceled, but not rejected."""


class PaymentNotCanceled(Exception):
    """pay_svc did not confirm that the payment is canceled. With `never_asked` the request did not reach it."""

    def __init__(self, message: str, *, never_asked: bool) -> None:
        super().__init__(message)
        self.never_asked = never_asked
