"""What an order learns from payment and reservation events."""

import logging
from datetime import UTC, datetime
from typing import Any, Protocol

from gotohotel.pay.v1.events_pb2 import PaymentApproved, PaymentCanceled, PaymentDeclined
from gotohotel.policies import Policies
from gotohotel.reservation.v1.events_pb2 import (
    ReservationCanceled,
    ReservationConfirmed,
    ReservationRejected,
    RoomTypeChanged,
)
from gotohotel.wire import money_from_proto
from order_svc.domain import Order, RoomType
from order_svc.store import UnitOfWork, open_work

logger = logging.getLogger(__name__)


class _OrderEvent(Protocol):
    order_id: str
    occur_time: Any


policies: Policies[UnitOfWork] = Policies(open_work)


@policies.whenever(PaymentApproved)
def mark_paid(event: PaymentApproved, work: UnitOfWork) -> None:
    _order(event, work).note_payment_approved(_time(event))


@policies.whenever(PaymentDeclined)
def record_decline(event: PaymentDeclined, work: UnitOfWork) -> None:
    _order(event, work).note_payment_declined(event.attempt_id, event.reason, at=_time(event))


@policies.whenever(PaymentCanceled)
def record_refund(event: PaymentCanceled, work: UnitOfWork) -> None:
    refunded = money_from_proto(event.refunded_amount, "refundedAmount")
    _order(event, work).note_payment_canceled(_time(event), refunded)


@policies.whenever(ReservationConfirmed)
def mark_confirmed(event: ReservationConfirmed, work: UnitOfWork) -> None:
    _order(event, work).note_confirmed(_time(event), event.confirmation_no)


@policies.whenever(ReservationRejected)
def mark_rejected(event: ReservationRejected, work: UnitOfWork) -> None:
    _order(event, work).note_rejected(_time(event))


@policies.whenever(ReservationCanceled)
def mark_reservation_canceled(event: ReservationCanceled, work: UnitOfWork) -> None:
    _order(event, work).note_reservation_canceled(_time(event))


@policies.whenever(RoomTypeChanged)
def copy_room_type(event: RoomTypeChanged, work: UnitOfWork) -> None:
    work.room_types.append(
        RoomType(
            id=event.id,
            version=event.version,
            display_name=event.display_name,
            capacity=event.capacity,
            max_guests=event.max_guests,
            nightly_rate=money_from_proto(event.nightly_rate, "nightlyRate"),
        )
    )


def _order(event: _OrderEvent, work: UnitOfWork) -> Order:
    # No other service can know of an order before it is stored here: a missing one is a permanent error.
    return work.orders[event.order_id]


def _time(event: _OrderEvent) -> datetime:
    time: datetime = event.occur_time.ToDatetime(tzinfo=UTC)
    return time
