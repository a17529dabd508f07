"""Domain events as protobuf messages, and their parts."""

from google.protobuf.message import Message

from gotohotel.domain import Event
from gotohotel.order.v1 import events_pb2 as order_events
from gotohotel.outbox import OutboxRow
from gotohotel.pay.v1 import events_pb2
from gotohotel.wire import actor_to_proto, money_to_proto, timestamp
from pay_svc.domain import Booking, Payment, PaymentApproved, PaymentCanceled, PaymentDeclined

# The signature stays with what pay_svc passes on unread.
KNOWN = tuple(field.name for field in order_events.Booking.DESCRIPTOR.fields if field.name != "signature")


def outbox_rows(payment: Payment) -> list[OutboxRow]:
    """The payment's new events, ready to be stored with it. The aggregate's id is the order's."""
    return [
        OutboxRow(payment.order_id, event.version, _message(payment, event), event.occurred_at)
        for event in payment.collect_events()
    ]


def booking_to_proto(booking: Booking) -> order_events.Booking:
    """The booking as received, including fields that only a newer release knows."""
    message = order_events.Booking.FromString(booking.unknown)
    for name in KNOWN:
        if value := getattr(booking, name):
            setattr(message, name, value)
    return message


def booking_from_proto(message: order_events.Booking) -> Booking:
    """The booking in a message."""
    unknown = order_events.Booking.FromString(message.SerializeToString())
    for name in KNOWN:
        unknown.ClearField(name)
    known = {name: getattr(message, name) for name in KNOWN}
    return Booking(**known, unknown=unknown.SerializeToString())


def _message(payment: Payment, event: Event) -> Message:
    order_id, version, when = payment.order_id, event.version, timestamp(event.occurred_at)
    actor = actor_to_proto(event.actor)
    match event:
        case PaymentApproved():
            if payment.booking is None or payment.card is None:
                raise TypeError("a payment is approved with its booking and its card")
            return events_pb2.PaymentApproved(
                order_id=order_id,
                version=version,
                occur_time=when,
                actor=actor,
                booking=booking_to_proto(payment.booking),
                amount=money_to_proto(payment.amount),
                card_brand=payment.card.brand,
                card_last4=payment.card.last4,
                approval_no=event.approval_no,
            )
        case PaymentDeclined():
            return events_pb2.PaymentDeclined(
                order_id=order_id,
                version=version,
                occur_time=when,
                actor=actor,
                reason=event.reason,
                attempt_id=event.attempt_id,
            )
        case PaymentCanceled():
            refunded = money_to_proto(event.refunded)
            return events_pb2.PaymentCanceled(
                order_id=order_id, version=version, occur_time=when, actor=actor, refunded_amount=refunded
            )
    raise TypeError(f"{type(event).__name__} has no message")
