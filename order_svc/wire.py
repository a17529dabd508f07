"""Domain events as protobuf messages, and their parts."""

from google.protobuf.message import Message

from gotohotel.domain import Event
from gotohotel.order.v1 import events_pb2
from gotohotel.outbox import OutboxRow
from gotohotel.wire import actor_to_proto, money_to_proto, timestamp
from order_svc.domain import Booking, Order, OrderCanceled, Ordered, OrderExpired


def outbox_rows(order: Order) -> list[OutboxRow]:
    """The order's new events, ready to be stored with it."""
    return [
        OutboxRow(order.id, event.version, _message(order.id, event), event.occurred_at)
        for event in order.collect_events()
    ]


def booking_to_proto(booking: Booking) -> events_pb2.Booking:
    """The booking as other services see it."""
    return events_pb2.Booking(
        name=booking.name,
        phone_no=booking.phone_no,
        room_type=booking.room_type,
        guest_cnt=booking.guest_cnt,
        check_in=booking.stay.check_in.isoformat(),
        check_out=booking.stay.check_out.isoformat(),
        owner=booking.owner,
    )


def _message(order_id: str, event: Event) -> Message:
    when, actor = timestamp(event.occurred_at), actor_to_proto(event.actor)
    match event:
        case Ordered():
            return events_pb2.Ordered(
                order_id=order_id,
                version=event.version,
                occur_time=when,
                actor=actor,
                booking=booking_to_proto(event.booking),
                amount=money_to_proto(event.amount),
            )
        case OrderCanceled():
            return events_pb2.OrderCanceled(
                order_id=order_id, version=event.version, occur_time=when, actor=actor, reason=event.reason
            )
        case OrderExpired():
            return events_pb2.OrderExpired(order_id=order_id, version=event.version, occur_time=when, actor=actor)
    raise TypeError(f"{type(event).__name__} has no message")
