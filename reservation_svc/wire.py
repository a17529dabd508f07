"""Domain events as protobuf messages, and their parts."""

from google.protobuf.message import Message

from gotohotel.domain import Event
from gotohotel.outbox import OutboxRow
from gotohotel.reservation.v1 import events_pb2
from gotohotel.wire import actor_to_proto, money_to_proto, timestamp
from reservation_svc.domain import (
    Reservation,
    ReservationCanceled,
    ReservationConfirmed,
    ReservationRejected,
    ReservationTaken,
    RoomType,
)


def outbox_rows(reservation: Reservation) -> list[OutboxRow]:
    """The reservation's new events, ready to be stored with it. The aggregate's id is the order's."""
    order_id = reservation.order_id
    return [
        OutboxRow(order_id, event.version, _message(order_id, event), event.occurred_at)
        for event in reservation.collect_events()
    ]


def room_type_rows(room_type: RoomType) -> list[OutboxRow]:
    """The room type's new events, ready to be stored with it."""
    return [
        OutboxRow(
            f"roomTypes/{room_type.id}",
            event.version,
            events_pb2.RoomTypeChanged(
                id=room_type.id,
                version=event.version,
                occur_time=timestamp(event.occurred_at),
                actor=actor_to_proto(event.actor),
                display_name=room_type.display_name,
                capacity=room_type.capacity,
                max_guests=room_type.max_guests,
                nightly_rate=money_to_proto(room_type.nightly_rate),
            ),
            event.occurred_at,
        )
        for event in room_type.collect_events()
    ]


def _message(order_id: str, event: Event) -> Message:
    version, when, actor = event.version, timestamp(event.occurred_at), actor_to_proto(event.actor)
    match event:
        case ReservationTaken():
            return events_pb2.ReservationTaken(order_id=order_id, version=version, occur_time=when, actor=actor)
        case ReservationConfirmed():
            return events_pb2.ReservationConfirmed(
                order_id=order_id, version=version, occur_time=when, actor=actor, confirmation_no=event.confirmation_no
            )
        case ReservationRejected():
            return events_pb2.ReservationRejected(
                order_id=order_id, version=version, occur_time=when, actor=actor, reason=event.reason
            )
        case ReservationCanceled():
            return events_pb2.ReservationCanceled(
                order_id=order_id, version=version, occur_time=when, actor=actor, reason=event.reason
            )
    raise TypeError(f"{type(event).__name__} has no message")
