"""pay.v1.PayService: gRPC requests and responses."""

import hashlib
import hmac
import logging
from collections.abc import Callable
from datetime import datetime

from gotohotel.database import Database
from gotohotel.domain import Invalid
from gotohotel.ids import parse_id
from gotohotel.pay.v1 import pay_service_pb2 as pb
from gotohotel.rpc.identity import Caller
from gotohotel.signatures import VerifyKey
from gotohotel.wire import actor_from_proto, money_from_proto, money_to_proto, parse_page, timestamp
from pay_svc import service
from pay_svc.domain import (
    SERVICE,
    AttemptLimits,
    Card,
    MaskedCard,
    Payment,
    Processor,
    ProcessorUnavailable,
    RefundPending,
    Status,
)
from pay_svc.store import PostgresPayments
from pay_svc.wire import booking_from_proto

logger = logging.getLogger(__name__)

NO_ORDER = "00000000-0000-0000-0000-000000000000"


class PayServer:
    """The RPCs of pay_svc. `clock` is the database's time."""

    def __init__(
        self,
        database: Database,
        processor: Processor,
        *,
        fingerprint_key: bytes,
        order_key: VerifyKey,
        currency: str,
        limits: AttemptLimits,
        processor_timeout_seconds: float,
        clock: Callable[[], datetime],
    ) -> None:
        self._payments = PostgresPayments(database.autocommit)
        self._processor = processor
        self._fingerprint_key = fingerprint_key
        self._order_key = order_key
        self._currency = currency
        self._limits = limits
        self._timeout = processor_timeout_seconds
        self._clock = clock

    async def ProcessPayment(self, request: pb.ProcessPaymentRequest, _: Caller) -> pb.Payment:
        amount = request.amount
        about = request.order_id, amount.currency_code, amount.units, amount.nanos
        if not self._order_key.has_signed(request.booking, *about):
            raise Invalid("booking", "is not signed by order_svc, or belongs to another order or amount")
        card = Card(request.card_no)
        payment = await service.process_payment(
            self._payments,
            self._processor,
            order_id=parse_id(request.order_id, "orderId"),
            attempt_id=parse_id(request.attempt_id, "attemptId"),
            amount=money_from_proto(request.amount, "amount"),
            booking=booking_from_proto(request.booking),
            card=card,
            masked_card=self._masked(card),
            limits=self._limits,
            timeout_seconds=self._timeout,
            clock=self._clock,
        )
        return _payment(payment)

    async def CancelPayment(self, request: pb.CancelPaymentRequest, _: Caller) -> pb.Payment:
        order_id = parse_id(request.order_id, "orderId")
        try:
            payment = await service.cancel_payment(
                self._payments,
                self._processor,
                order_id,
                by=actor_from_proto(request.actor) or SERVICE,
                currency=self._currency,
                timeout_seconds=self._timeout,
                clock=self._clock,
            )
        except ProcessorUnavailable:
            # Not UNAVAILABLE: the gateway would count it against pay_svc, which works.
            raise RefundPending() from None
        return _payment(payment)

    async def ClosePayment(self, request: pb.ClosePaymentRequest, _: Caller) -> pb.ClosePaymentResponse:
        order_id = parse_id(request.order_id, "orderId")
        payment = await service.close_payment(self._payments, order_id, currency=self._currency, clock=self._clock)
        return _closure(payment)

    async def CheckAvailability(self, _: pb.CheckAvailabilityRequest, __: Caller) -> pb.CheckAvailabilityResponse:
        await self._payments.find(NO_ORDER)  # raises if the database is away
        return pb.CheckAvailabilityResponse()

    async def GetPayment(self, request: pb.GetPaymentRequest, caller: Caller) -> pb.Payment:
        return _payment(await self._payments.get(parse_id(request.order_id, "orderId"), owner=caller.owner))

    async def ListPayments(self, request: pb.ListPaymentsRequest, caller: Caller) -> pb.ListPaymentsResponse:
        page = parse_page(request)
        payments = await self._payments.page(owner=caller.owner, before=page.before, size=page.size)
        token = page.next_token([payment.order_id for payment in payments])
        return pb.ListPaymentsResponse(payments=map(_payment, payments), next_page_token=token)

    def _masked(self, card: Card) -> MaskedCard:
        fingerprint = hmac.new(self._fingerprint_key, card.number.encode(), hashlib.sha256).digest()
        return MaskedCard(brand=card.brand, last4=card.last4, fingerprint=fingerprint)


def _payment(payment: Payment) -> pb.Payment:
    return pb.Payment(
        id=payment.id,
        order_id=payment.order_id,
        status=payment.status.value,
        amount=money_to_proto(payment.amount),
        refunded_amount=money_to_proto(payment.refunded),
        card_brand=payment.card.brand if payment.card else "",
        card_last4=payment.card.last4 if payment.card else "",
        approval_no=payment.approval_no,
        decline_reason=payment.decline_reason,
        create_time=timestamp(payment.created_at),
        update_time=timestamp(payment.updated_at),
        attempt_id=payment.attempt_id or "",
    )


def _closure(payment: Payment) -> pb.ClosePaymentResponse:
    return pb.ClosePaymentResponse(
        closed=payment.status == Status.CANCELED and payment.approved_at is None,
        approve_time=timestamp(payment.approved_at) if payment.approved_at else None,
        cancel_time=timestamp(payment.canceled_at) if payment.approved_at and payment.canceled_at else None,
        refunded_amount=money_to_proto(payment.refunded),
    )
