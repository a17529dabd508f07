"""What the desk learns from payment and order events."""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

from google.protobuf.message import Message

from gotohotel.bus.consumer import Requirement, Untrusted
from gotohotel.ids import first_id_at
from gotohotel.order.v1.events_pb2 import OrderCanceled, OrderExpired
from gotohotel.pay.v1.events_pb2 import PaymentApproved
from gotohotel.policies import Policies
from gotohotel.signatures import VerifyKey
from gotohotel.wire import actor_from_proto, money_from_proto
from reservation_svc.domain import SERVICE, Booking
from reservation_svc.store import UnitOfWork, open_work

policies: Policies[UnitOfWork] = Policies(open_work)


UNSIGNED_FOR = timedelta(days=30)  # how long bookings of the release before may be on their way


def ordered(order_key: VerifyKey, *, unsigned_before: datetime | None, clock: Callable[[], datetime]) -> Requirement:
    """The desk believes a payment only if order_svc has signed what was paid for.

    Bookings of earlier releases have no signature; their orders are older than `unsigned_before`.
    """

    def is_of_the_release_before(event: PaymentApproved) -> bool:
        if event.booking.signature or unsigned_before is None or clock() > unsigned_before + UNSIGNED_FOR:
            return False
        return event.order_id < first_id_at(unsigned_before)

    def require(event: Message) -> None:
        if not isinstance(event, PaymentApproved):
            return
        if event.order_id != event.order_id.lower():
            raise Untrusted("the order's id is not written as order_svc writes it")
        amount = event.amount
        about = event.order_id, amount.currency_code, amount.units, amount.nanos
        if not is_of_the_release_before(event) and not order_key.has_signed(event.booking, *about):
            raise Untrusted("the booking is not signed by order_svc, or belongs to another order or amount")

    return require


@policies.whenever(PaymentApproved)
def take_reservation(event: PaymentApproved, work: UnitOfWork) -> None:
    """A paid booking reaches the desk; an unpaid one never does."""
    booking = Booking(
        name=event.booking.name,
        phone_no=event.booking.phone_no,
        room_type=event.booking.room_type,
        guest_cnt=event.booking.guest_cnt,
        check_in=event.booking.check_in,
        check_out=event.booking.check_out,
        amount=money_from_proto(event.amount, "amount"),
    )
    work.reservation(event.order_id).take(booking, at=work.now)


@policies.whenever(OrderCanceled)
def cancel_reservation(event: OrderCanceled, work: UnitOfWork) -> None:
    """The guest canceled: the job that completes endings cancels the payment, then the reservation."""
    _end(event, work, reason=event.reason)


@policies.whenever(OrderExpired)
def cancel_unpaid_reservation(event: OrderExpired, work: UnitOfWork) -> None:
    """The order expired: a charge that came through nevertheless is refunded."""
    _end(event, work, reason="not paid in time")


def _end(event: Any, work: UnitOfWork, *, reason: str) -> None:
    work.reservation(event.order_id).note_order_ended(reason, by=actor_from_proto(event.actor) or SERVICE, at=work.now)
