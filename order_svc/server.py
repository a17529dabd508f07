"""order.v1.OrderService: gRPC requests and responses."""

import logging
import re
from collections.abc import Callable
from datetime import date, datetime, timedelta

import phonenumbers

from gotohotel import trace
from gotohotel.cards import passes_luhn
from gotohotel.claims import IdempotencyKey
from gotohotel.database import Connection, Database
from gotohotel.domain import Invalid
from gotohotel.idempotency import IdempotencyStore
from gotohotel.ids import new_id, parse_id
from gotohotel.order.v1 import order_service_pb2 as pb
from gotohotel.rpc.identity import Caller
from gotohotel.texts import masked, parse_text
from gotohotel.wire import money_to_proto, parse_page, timestamp
from order_svc import service
from order_svc.domain import IN_PROGRESS, Booking, Order, PaymentOutcome, Payments, Status, Stay, UnpaidLimits
from order_svc.store import PostgresOrders, PostgresRoomTypes

logger = logging.getLogger(__name__)


class OrderServer:
    """The RPCs of order_svc. `clock` is the database's time, `today` the property's date."""

    def __init__(
        self,
        database: Database,
        requests: IdempotencyStore,
        room_types: PostgresRoomTypes,
        payments: Payments,
        *,
        clock: Callable[[], datetime],
        today: Callable[[], date],
        unpaid_minutes: float,
        unpaid_limits: UnpaidLimits,
        phone_region: str,
    ) -> None:
        self._database = database
        self._orders = PostgresOrders(database.autocommit)
        self._requests = requests
        self._room_types = room_types
        self._clock = clock
        self._today = today
        self._phone_region = phone_region
        self._sales = service.Sales(
            orders=self._orders,
            room_types=room_types,
            payments=payments,
            clock=clock,
            unpaid_for=timedelta(minutes=unpaid_minutes),
            unpaid_limits=unpaid_limits,
        )

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

    async def CreateOrder(self, request: pb.CreateOrderRequest, caller: Caller) -> pb.Order:
        card_no = _card_number(request.card_no) if request.card_no else None

        async def place(claim: IdempotencyKey | None) -> pb.Order:
            booking, order_id = self._booking(request, caller), new_id()
            trace.about(order_id)
            return _order(
                *await service.place_order(
                    self._sales, booking, card_no, request=claim, order_id=order_id, attempt_id=new_id()
                )
            )

        async def resume(order_id: str) -> pb.Order:
            return _order(*await service.resume_order(self._sales, order_id, card_no, owner=caller.subject))

        answer = await self._requests.in_one_statement(request, pb.Order, place, resume, subject=caller.subject)
        return await self._latest(answer, caller)

    async def GetOrder(self, request: pb.GetOrderRequest, caller: Caller) -> pb.Order:
        return _shown(_order(await self._orders.get(parse_id(request.id, "id"), owner=caller.owner)), caller)

    async def ListOrders(self, request: pb.ListOrdersRequest, caller: Caller) -> pb.ListOrdersResponse:
        page = parse_page(request)
        orders = await self._orders.page(owner=caller.owner, before=page.before, size=page.size)
        token = page.next_token([order.id for order in orders])
        shown = [_shown(_order(order), caller) for order in orders]
        return pb.ListOrdersResponse(orders=shown, next_page_token=token)

    async def PayOrder(self, request: pb.PayOrderRequest, caller: Caller) -> pb.Order:
        order_id = parse_id(request.order_id, "orderId")
        card_no = _card_number(request.card_no)

        async def pay() -> pb.Order:
            attempt_id = new_id()
            return _order(
                *await service.pay_order(self._sales, order_id, card_no, owner=caller.subject, attempt_id=attempt_id)
            )

        answer = await self._requests.in_steps(request, pb.Order, pay, subject=caller.subject)
        return await self._latest(answer, caller)

    async def CancelOrder(self, request: pb.CancelOrderRequest, caller: Caller) -> pb.Order:
        order_id = parse_id(request.order_id, "orderId")
        reason = parse_text(request.reason, "reason", limit=200)

        async def cancel(connection: Connection) -> pb.Order:
            orders = PostgresOrders(connection)
            return _order(
                await service.cancel_order(
                    orders,
                    order_id,
                    owner=caller.owner,
                    reason=reason,
                    by=caller.actor,
                    now=self._clock(),
                    today=self._today(),
                )
            )

        return _shown(await self._requests.once(request, pb.Order, cancel, subject=caller.subject), caller)

    async def _latest(self, answer: pb.Order, caller: Caller) -> pb.Order:
        """The answer if it was final; otherwise the current state of the order."""
        if answer.payment_error.reason != IN_PROGRESS.reason:
            return answer
        return _order(await self._orders.get(answer.id, owner=caller.owner))

    def _booking(self, request: pb.CreateOrderRequest, caller: Caller) -> Booking:
        return Booking(
            owner=caller.subject,
            name=_required_text(request.name, "name"),
            phone_no=_phone_number(request.phone_no, self._phone_region),
            room_type=parse_text(request.room_type, "roomType", limit=64),
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
    text = parse_text(value, field, limit=100)
    if not text:
        raise Invalid(field, "is required")
    return text


def _phone_number(value: str, region: str) -> str:
    """The number as typed. Its country is the region's, unless it begins with + and another country code."""
    text = parse_text(value, "phoneNo", limit=20)
    if text and not re.fullmatch(r"\+?\d(?:-?\d){6,14}", text, re.ASCII):
        raise Invalid("phoneNo", "must have 7 to 15 digits, with an optional + before and dashes between them")
    try:
        is_possible = not text or phonenumbers.is_possible_number(phonenumbers.parse(text, region))
    except phonenumbers.NumberParseException:
        is_possible = False
    if not is_possible:
        raise Invalid("phoneNo", "is not a phone number: it has too few or too many digits for its country")
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


def _shown(order: pb.Order, caller: Caller) -> pb.Order:
    """The order as this caller may see it: the desk's screens show no whole phone numbers."""
    if caller.owner is None:
        order.phone_no = masked(order.phone_no)
    return order


def _order(order: Order, tried: PaymentOutcome | None = None) -> pb.Order:
    """The order as its owner sees it. After an attempt in this call: its outcome, unless a newer attempt has one."""
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
