"""Domain events as protobuf messages."""

from gotohotel.review.v1 import events_pb2

from gotohotel.domain import Event
from gotohotel.outbox import OutboxRow
from gotohotel.wire import actor_to_proto, timestamp
from review_svc.domain import Review, StayReviewed


def outbox_rows(review: Review) -> list[OutboxRow]:
    """The review's new events, ready to be stored with it."""
    return [
        OutboxRow(review.order_id, event.version, _message(review.order_id, event), event.occurred_at)
        for event in review.collect_events()
    ]


def _message(order_id: str, event: Event) -> events_pb2.StayReviewed:
    match event:
        case StayReviewed():
            return events_pb2.StayReviewed(
                order_id=order_id,
                version=event.version,
                occur_time=timestamp(event.occurred_at),
                actor=actor_to_proto(event.actor),
                text=event.text,
            )
    raise TypeError(f"{type(event).__name__} has no message")
