"""order.v1.OrderService: requests in, answers out."""

import asyncio
import logging
import re
from collections.abc import Callable
from datetime import date, datetime, timedelta
from typing import Any

import asyncpg

from gotohotel.database import TRANSIENT, Database
from gotohotel.domain import DomainError, Invalid, new_id, parse_id, parse_text, passes_luhn
from gotohotel.idempotency import Claim, Requests
from gotohotel.order.v1 import order_service_pb2 as pb
from gotohotel.rpc import DESK, GUEST, Caller, allow
from gotohotel.wire import money_to_proto, parse_page, timestamp
from order_svc import service
from order_svc.domain import IN_PROGRESS, Booking, Order, OrderChanged, PaymentOutcome, Payments, Status, Stay
from order_svc.store import PostgresOrders, PostgresRoomTypes

logger = logging.getLogger(__name__)


class OrderServer:
    """The RPCs of order_svc. `committed` is told after every commit.

    `clock` is the database's time, `today` the property's date.
    """

    def __init__(
        self,
        database: Database,
        requests: Requests,
        room_types: PostgresRoomTypes,
        payments: Payments,
        *,
        clock: Callable[[], datetime],
        today: Callable[[], date],
        unpaid_minutes: float,
        committed: Callable[[], None],
    ) -> None:
        self._database = database
        self._orders = PostgresOrders(database.autocommit)
        self._requests = requests
        self._room_types = room_types
        self._payments = payments
        self._clock = clock
        self._today = today
        self._unpaid = timedelta(minutes=unpaid_minutes)
        self._committed = committed

    @allow()
    async def SearchRooms(self, request: pb.SearchRoomsRequest, _: Caller) -> pb.SearchRoomsResponse:
        stay = self._stay(request)
        vacancies = await self._room_types.search(stay, guest_cnt=_guests(request.guest_cnt))
        rooms = [
            pb.Room(
                room_type=vacancy.room_type.id,
                display_name=vacancy.room_type.display_name,
                max_guests=vacancy.room_type.max_guests,
                nightly_rate=money_to_proto(vacancy.room_type.nightly_rate),
                total=money_to_proto(vacancy.room_type.nightly_rate * stay.nights),
                available=vacancy.available,
            )
            for vacancy in vacancies
        ]
        return pb.SearchRoomsResponse(rooms=rooms)

    @allow(GUEST)
    async def CreateOrder(self, request: pb.CreateOrderRequest, caller: Caller) -> pb.Order:
        card_no = _card_number(request.card_no) if request.card_no else None
        claim = self._requests.claim_of(request, subject=caller.subject)
        with self._requests.acting(claim):
            try:
                booking = self._booking(request, caller)
                order = await self._place(booking, claim, pays_now=card_no is not None)
            except (DomainError, asyncpg.UniqueViolationError) as error:
                refusal = error
            else:
                return await self._finish_placing(order, card_no, claim)
        # A repetition gets its first answer, even if the room that it took was the last one.
        if claim is None or not await self._requests.is_known(claim):
            raise refusal
        replay = await self._requests.replay(claim, pb.Order)
        if replay is not None:
            return await self._latest(replay, caller)
        with self._requests.acting(claim):
            # Whoever made this order has died: the same attempt to pay goes on, so that it can't be charged twice.
            order_id = await self._requests.resource_of(claim)
            order = await self._orders.get(order_id, owner=caller.subject)
            return await self._finish_placing(order, card_no, claim)

    @allow(GUEST, DESK)
    async def GetOrder(self, request: pb.GetOrderRequest, caller: Caller) -> pb.Order:
        return _order(await self._orders.get(parse_id(request.id, "id"), owner=caller.owner))

    @allow(GUEST, DESK)
    async def ListOrders(self, request: pb.ListOrdersRequest, caller: Caller) -> pb.ListOrdersResponse:
        page = parse_page(request)
        orders = await self._orders.page(owner=caller.owner, before=page.before, size=page.size)
        token = page.next_token([order.id for order in orders])
        return pb.ListOrdersResponse(orders=map(_order, orders), next_page_token=token)

    @allow(GUEST)
    async def PayOrder(self, request: pb.PayOrderRequest, caller: Caller) -> pb.Order:
        order_id = parse_id(request.order_id, "orderId")
        card_no = _card_number(request.card_no)

        async def pay() -> pb.Order:
            order = await service.start_payment(
                self._orders, order_id, owner=caller.subject, attempt_id=new_id(), now=self._clock()
            )
            return await self._pay(order, card_no)

        answer = await self._requests.in_steps(request, pb.Order, pay, subject=caller.subject)
        return await self._latest(answer, caller)

    @allow(GUEST, DESK)
    async def CancelOrder(self, request: pb.CancelOrderRequest, caller: Caller) -> pb.Order:
        order_id = parse_id(request.order_id, "orderId")
        reason = parse_text(request.reason, "reason", at_most=200)

        async def cancel(connection: Any) -> pb.Order:
            orders = PostgresOrders(connection)
            now = self._clock()
            return _order(await service.cancel_order(orders, order_id, owner=caller.owner, reason=reason, now=now))

        answer = await self._requests.once(request, pb.Order, cancel, subject=caller.subject)
        self._committed()
        return answer

    async def expire_orders(self) -> None:
        """The job that expires unpaid orders; every replica runs it."""
        while True:
            await service.watch_expiry(self._orders, self._payments)  # a backlog must not hide that pay_svc is away
            due = await self._orders.due(limit=20)
            if not due:
                return
            async with asyncio.TaskGroup() as tasks:
                for order in due:
                    tasks.create_task(self._expire(order))
            self._committed()

    async def _expire(self, order: Order) -> None:
        try:
            await service.expire_order(self._orders, self._payments, order, clock=self._clock)
        except TRANSIENT as error:
            logger.warning("order %s: not expired yet: %r", order.id, error)

    async def apply_room_types(self) -> None:
        """The job that makes the allotment follow the catalogue."""
        await self._room_types.apply_changes(self._today())

    async def open_nights(self) -> None:
        """The job that puts the next day on sale."""
        await self._room_types.open_nights(self._today())

    async def _finish_placing(self, order: Order, card_no: str | None, claim: Claim | None) -> pb.Order:
        """Pays a placed order if there is a card, and keeps the answer for repetitions."""
        answer = await self._pay(order, card_no) if card_no else _order(order)
        await self._requests.keep_answer(claim, answer)
        return answer

    async def _latest(self, answer: pb.Order, caller: Caller) -> pb.Order:
        """The answer, unless it was not final: then how the order stands now."""
        if answer.payment_error.reason != IN_PROGRESS.reason:
            return answer
        return _order(await self._orders.get(answer.id, owner=caller.owner))

    async def _place(self, booking: Booking, claim: Claim | None, *, pays_now: bool) -> Order:
        """Stores a new order. The price comes from the cache; if it is out of date, once more with a fresh one."""
        for fresh in (False, True, True):
            room_type = await self._room_types.get(booking.room_type, fresh=fresh)
            now = self._clock()
            order = Order.place(new_id(), booking, room_type, placed_at=now, expires_at=now + self._unpaid)
            if pays_now:
                order.start_payment(new_id(), started_at=now, lifetime=service.ATTEMPT_LIFETIME)
            if await self._orders.place(order, room_type, claim):
                self._committed()
                return order
        raise Invalid("roomType", "is being changed; try again")

    async def _pay(self, order: Order, card_no: str) -> pb.Order:
        """Has the order's current try charged, unless the order is past that; answers with how it went."""
        if order.status != Status.PAYMENT_PENDING:
            return _order(order)
        outcome = await self._payments.process(order, card_no)
        try:
            order = await service.settle_payment(self._orders, order, outcome, now=self._clock())
        except (*TRANSIENT, OrderChanged) as error:
            # The order stands, and the guest hears how its payment went; PaymentApproved will tell the database.
            logger.warning("order %s: how its payment went could not be stored yet: %r", order.id, error)
        return _order(order, tried=outcome)

    def _booking(self, request: pb.CreateOrderRequest, caller: Caller) -> Booking:
        return Booking(
            owner=caller.subject,
            name=_required_text(request.name, "name"),
            phone_no=_phone_number(request.phone_no),
            room_type=parse_text(request.room_type, "roomType", at_most=64),
            guest_cnt=_guests(request.guest_cnt),
            stay=self._stay(request),
        )

    def _stay(self, request: pb.CreateOrderRequest | pb.SearchRoomsRequest) -> Stay:
        check_in, check_out = _date(request.check_in, "checkIn"), _date(request.check_out, "checkOut")
        return Stay.starting(check_in, check_out, today=self._today())


def _date(text: str, field: str) -> date | None:
    if not text:
        return None
    try:
        if not re.fullmatch(r"\d{4}-\d{2}-\d{2}", text, re.ASCII):
            raise ValueError
        return date.fromisoformat(text)
    except ValueError:
        raise Invalid(field, "must be a date as YYYY-MM-DD") from None


def _required_text(value: str, field: str) -> str:
    text = parse_text(value, field, at_most=100)
    if not text:
        raise Invalid(field, "is required")
    return text


def _phone_number(value: str) -> str:
    text = parse_text(value, "phoneNo", at_most=20)
    if text and not re.fullmatch(r"\+?\d(?:-?\d){6,14}", text, re.ASCII):
        raise Invalid("phoneNo", "must have 7 to 15 digits, with an optional + before and dashes between them")
    return text


def _guests(count: int) -> int:
    if count < 0:
        raise Invalid("guestCnt", "must not be negative")
    return count or 1


def _card_number(value: str) -> str:
    digits = re.sub(r"[ -]", "", value)
    if not re.fullmatch(r"\d{13,19}", digits, re.ASCII) or not passes_luhn(digits):
        raise Invalid("cardNo", "is not a card number")
    return digits


def _order(order: Order, *, tried: PaymentOutcome | None = None) -> pb.Order:
    """What a caller sees; after a try of his own whatever came of that, if a newer try has nothing to tell yet."""
    pending = order.status == Status.PAYMENT_PENDING
    message = pb.Order(
        id=order.id,
        name=order.booking.name,
        phone_no=order.booking.phone_no,
        room_type=order.booking.room_type,
        guest_cnt=order.booking.guest_cnt,
        check_in=order.booking.stay.check_in.isoformat(),
        check_out=order.booking.stay.check_out.isoformat(),
        amount=money_to_proto(order.amount),
        refunded_amount=money_to_proto(order.refunded),
        status=order.status.value,
        confirmation_no=order.confirmation_no,
        version=order.version,
        create_time=timestamp(order.created_at),
        update_time=timestamp(order.updated_at),
        expire_time=timestamp(order.expires_at) if pending else None,
    )
    error = order.payment_error or (tried.error if tried else None)
    if pending and error:
        message.payment_error.reason = error.reason
        message.payment_error.message = error.message
        if error.retry_after_seconds is not None:
            message.payment_error.retry_after.FromSeconds(error.retry_after_seconds)
    return message
