"""What My page shows: every event of an order becomes a fact on its page."""

from datetime import UTC
from typing import Any

from google.protobuf.message import Message

from gotohotel.access.v1.actor_pb2 import Actor
from gotohotel.order.v1 import events_pb2 as order_events
from gotohotel.pay.v1 import events_pb2 as pay_events
from gotohotel.policies import Policies
from gotohotel.reservation.v1 import events_pb2 as reservation_events
from gotohotel.wire import money_from_proto
from mypage_svc.domain import Fact
from mypage_svc.store import UnitOfWork, open_work

policies: Policies[UnitOfWork] = Policies(open_work)


@policies.whenever(order_events.Ordered)
def open_page(event: order_events.Ordered, work: UnitOfWork) -> None:
    """The order was placed."""
    _add(event, work, booking=event.booking, amount=event.amount)


@policies.whenever(order_events.OrderCanceled)
def show_cancel(event: order_events.OrderCanceled, work: UnitOfWork) -> None:
    """The guest canceled."""
    _add(event, work, detail=event.reason)


@policies.whenever(order_events.OrderExpired)
def show_expiry(event: order_events.OrderExpired, work: UnitOfWork) -> None:
    """The order was not paid in time."""
    _add(event, work)


@policies.whenever(pay_events.PaymentApproved)
def show_payment(event: pay_events.PaymentApproved, work: UnitOfWork) -> None:
    """The card was charged."""
    card = f"{event.card_brand} ****{event.card_last4}"
    _add(event, work, detail=card, booking=event.booking, amount=event.amount)


@policies.whenever(pay_events.PaymentDeclined)
def show_decline(event: pay_events.PaymentDeclined, work: UnitOfWork) -> None:
    """An attempt to pay did not succeed."""
    _add(event, work, detail=event.reason)


@policies.whenever(pay_events.PaymentCanceled)
def show_refund(event: pay_events.PaymentCanceled, work: UnitOfWork) -> None:
    """The payment was canceled and refunded."""
    _add(event, work, amount=event.refunded_amount)


@policies.whenever(reservation_events.ReservationTaken)
def show_reservation(event: reservation_events.ReservationTaken, work: UnitOfWork) -> None:
    """The desk received the booking."""
    _add(event, work)


@policies.whenever(reservation_events.ReservationConfirmed)
def show_confirmation(event: reservation_events.ReservationConfirmed, work: UnitOfWork) -> None:
    """The desk confirmed."""
    _add(event, work, detail=event.confirmation_no)


@policies.whenever(reservation_events.ReservationRejected)
def show_rejection(event: reservation_events.ReservationRejected, work: UnitOfWork) -> None:
    """The desk rejected."""
    _add(event, work, detail=event.reason)


@policies.whenever(reservation_events.ReservationCanceled)
def show_reservation_cancel(event: reservation_events.ReservationCanceled, work: UnitOfWork) -> None:
    """The reservation was canceled."""
    _add(event, work, detail=event.reason)


def _shown(booking: Message) -> dict[str, Any]:
    names = [field.name for field in booking.DESCRIPTOR.fields if field.name != "signature"]
    return {name: getattr(booking, name) for name in names}


def _add(event: Any, work: UnitOfWork, *, detail: str = "", booking: Message | None = None, amount: Any = None) -> None:
    _, source, _, name = event.DESCRIPTOR.full_name.split(".")
    work.facts[event.order_id].append(
        Fact(
            source=source,
            version=event.version,
            event=name,
            time=event.occur_time.ToDatetime(tzinfo=UTC),
            detail=detail,
            actor_role=Actor.Role.Name(event.actor.role) if event.actor.role in Actor.Role.values()[1:] else "",
            booking=_shown(booking) if booking is not None else None,
            amount=money_from_proto(amount, "amount") if amount is not None else None,
        )
    )
