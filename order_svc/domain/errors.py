"""What may be refused."""

from gotohotel.domain import Conflict, Invalid, NotFound, TooMany, WrongState


class OrderNotFound(NotFound):
    """There is no such order."""


class RoomTypeNotFound(Invalid):
    """There is no such room type."""

    def __init__(self) -> None:
        super().__init__("roomType", "is not a room type of this hotel")


class SoldOut(Conflict):
    """A night of the stay has no room of this type left."""

    retryable = False


class OrderChanged(Conflict):
    """The order was changed by somebody else at the same time; try again."""


class RequestTaken(Conflict):
    """The request id was used before."""


class OrderNotPayable(WrongState):
    """The order is canceled, expired or rejected and can't be paid."""


class OrderNotCancelable(WrongState):
    """The order is expired or rejected and can't be canceled."""


class StayBegun(WrongState):
    """The stay has begun: only the hotel can cancel it now."""


class TooManyUnpaid(TooMany):
    """The guest has too many unpaid orders: pay or cancel one first, or wait until one expires."""


class TooManyAttempts(TooMany):
    """Too many cards were declined; try again later."""


class PaymentsUnreachable(Exception):
    """pay_svc did not answer; the state of the payment is unknown."""
