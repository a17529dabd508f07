"""reservation.v1.ReservationService: gRPC requests and responses."""

import logging
import secrets
from collections.abc import Callable
from datetime import datetime

from gotohotel.database import Connection, Database
from gotohotel.domain import Invalid
from gotohotel.idempotency import IdempotencyStore
from gotohotel.ids import parse_id
from gotohotel.reservation.v1 import reservation_service_pb2 as pb
from gotohotel.rpc.identity import Caller
from gotohotel.rpc.status import Unavailable
from gotohotel.texts import masked, parse_text
from gotohotel.wire import money_from_proto, money_to_proto, parse_page, timestamp
from reservation_svc import service
from reservation_svc.domain import (
    PaymentNotCanceled,
    Payments,
    Reservation,
    RoomType,
    Status,
)
from reservation_svc.store import PostgresReservations, PostgresRoomTypes

logger = logging.getLogger(__name__)

# Without letters and digits that are easily confused.
CONFIRMATION_ALPHABET = "23456789ABCDEFGHJKLMNPQRSTUVWXYZ"


class ReservationServer:
    """The RPCs of reservation_svc. `clock` is the database's time."""

    def __init__(
        self,
        database: Database,
        requests: IdempotencyStore,
        payments: Payments,
        *,
        currency: str,
        currency_digits: int,
        clock: Callable[[], datetime],
    ) -> None:
        self._database = database
        self._reservations = PostgresReservations(database.autocommit)
        self._room_types = PostgresRoomTypes(database.autocommit)
        self._requests = requests
        self._payments = payments
        self._currency = currency
        self._currency_digits = currency_digits
        self._clock = clock

    async def ListReservations(self, request: pb.ListReservationsRequest, _: Caller) -> pb.ListReservationsResponse:
        page = parse_page(request)
        if request.status not in pb.Reservation.Status.values():
            raise Invalid("status", "is not a status of a reservation")
        status = pb.Reservation.Status.Name(request.status) if request.status else None
        reservations = await self._reservations.page(status=status, before=page.before, size=page.size)
        token = page.next_token([reservation.order_id for reservation in reservations])
        return pb.ListReservationsResponse(reservations=map(_reservation, reservations), next_page_token=token)

    async def GetReservation(self, request: pb.GetReservationRequest, _: Caller) -> pb.Reservation:
        return _reservation(await self._reservations.get(parse_id(request.order_id, "orderId")))

    async def ConfirmReservation(self, request: pb.ConfirmReservationRequest, caller: Caller) -> pb.Reservation:
        order_id = parse_id(request.order_id, "orderId")
        number = "".join(secrets.choice(CONFIRMATION_ALPHABET) for _ in range(10))

        async def confirm(connection: Connection) -> pb.Reservation:
            reservations = PostgresReservations(connection)
            return _reservation(
                await service.confirm_reservation(
                    reservations, order_id, confirmation_no=number, by=caller.actor, now=self._clock()
                )
            )

        return await self._requests.once(request, pb.Reservation, confirm, subject=caller.subject)

    async def RejectReservation(self, request: pb.RejectReservationRequest, caller: Caller) -> pb.Reservation:
        return await self._end(request, caller, Status.REJECTED)

    async def CancelReservation(self, request: pb.CancelReservationRequest, caller: Caller) -> pb.Reservation:
        return await self._end(request, caller, Status.CANCELED)

    async def ListRoomTypes(self, _: pb.ListRoomTypesRequest, __: Caller) -> pb.ListRoomTypesResponse:
        return pb.ListRoomTypesResponse(room_types=map(_room_type, await self._room_types.all()))

    async def UpsertRoomType(self, request: pb.UpsertRoomTypeRequest, caller: Caller) -> pb.RoomType:
        rate = money_from_proto(request.nightly_rate, "nightlyRate")
        if rate.currency != self._currency or rate.amount != round(rate.amount, self._currency_digits):
            raise Invalid("nightlyRate", f"must be in {self._currency} with {self._currency_digits} decimals")
        display_name = parse_text(request.display_name, "displayName", limit=100)

        async def upsert(connection: Connection) -> pb.RoomType:
            return _room_type(
                await service.set_room_type(
                    PostgresRoomTypes(connection),
                    request.id,
                    display_name,
                    capacity=request.capacity,
                    max_guests=request.max_guests,
                    nightly_rate=rate,
                    by=caller.actor,
                    now=self._clock(),
                )
            )

        return await self._requests.once(request, pb.RoomType, upsert, subject=caller.subject)

    async def _end(
        self, request: pb.RejectReservationRequest | pb.CancelReservationRequest, caller: Caller, status: Status
    ) -> pb.Reservation:
        """Cancels the payment first, then ends the reservation."""
        order_id = parse_id(request.order_id, "orderId")
        reason = parse_text(request.reason, "reason", limit=200)

        async def end() -> pb.Reservation:
            try:
                ended = await service.end_reservation(
                    self._reservations,
                    self._payments,
                    order_id,
                    status=status,
                    reason=reason,
                    by=caller.actor,
                    clock=self._clock,
                )
            except PaymentNotCanceled as error:
                logger.warning("order %s: not ended: %s", order_id, error)
                raise Unavailable("the payment can't be canceled now; try again") from None
            return _reservation(ended)

        return await self._requests.in_steps(request, pb.Reservation, end, subject=caller.subject)


def _reservation(reservation: Reservation) -> pb.Reservation:
    message = pb.Reservation(
        order_id=reservation.order_id,
        status=reservation.status.value,
        reason=reservation.ending.reason if reservation.ended_at and reservation.ending else "",
        confirmation_no=reservation.confirmation_no,
        create_time=timestamp(reservation.created_at),
        update_time=timestamp(reservation.updated_at),
    )
    if booking := reservation.booking:
        message.name = booking.name
        message.phone_no = masked(booking.phone_no)
        message.room_type = booking.room_type
        message.guest_cnt = booking.guest_cnt
        message.check_in = booking.check_in
        message.check_out = booking.check_out
        message.amount.CopyFrom(money_to_proto(booking.amount))
    return message


def _room_type(room_type: RoomType) -> pb.RoomType:
    return pb.RoomType(
        id=room_type.id,
        display_name=room_type.display_name,
        capacity=room_type.capacity,
        max_guests=room_type.max_guests,
        nightly_rate=money_to_proto(room_type.nightly_rate),
    )
