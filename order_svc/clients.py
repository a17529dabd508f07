"""Calls to pay_svc, through the gateway's egress listener, whose outlier detection ejects a failing pay_svc."""

import logging
import time
from datetime import UTC

import grpc

from gotohotel.pay.v1 import pay_service_pb2 as pb
from gotohotel.rpc.client import CallFailed, RpcClient
from gotohotel.rpc.deadline import remaining_seconds
from gotohotel.signatures import SigningKey
from gotohotel.wire import money_from_proto, money_to_proto
from order_svc.domain import (
    IN_PROGRESS,
    PAY_LATER,
    TOO_MANY_ATTEMPTS,
    Order,
    PaymentClosure,
    PaymentOutcome,
    PaymentsUnreachable,
    declined,
    too_many_attempts,
)
from order_svc.wire import booking_to_proto

logger = logging.getLogger(__name__)

PROCESS_PAYMENT = "/gotohotel.pay.v1.PayService/ProcessPayment"
CLOSE_PAYMENT = "/gotohotel.pay.v1.PayService/ClosePayment"
CHECK_AVAILABILITY = "/gotohotel.pay.v1.PayService/CheckAvailability"
PROBE_SECONDS = 2.0
UNREACHABLE = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
OVERTAXED = (*UNREACHABLE, grpc.StatusCode.RESOURCE_EXHAUSTED)
MOST_CHARGES, FEWEST_CHARGES = 320, 16  # at a time
WELL_SECONDS = 5.0  # without a failure, and the window is open again


class Window:
    """How many charges may be under way: one more for each that pay_svc answers, two fewer for each that it does not.

    So while it fails for most, few are tried, and once it is well again it is not met by all at once.
    """

    def __init__(self) -> None:
        self._size = MOST_CHARGES
        self._under_way = 0
        self._failed_at = 0.0

    @property
    def is_full(self) -> bool:
        """Whether no further charge may be tried now."""
        if time.monotonic() > self._failed_at + WELL_SECONDS:
            self._size = MOST_CHARGES
        return self._under_way >= self._size

    def begin(self) -> None:
        """Counts a charge that is tried now."""
        self._under_way += 1

    def end(self, *, answered: bool | None) -> None:
        """Ends a charge. With None it is not known whether pay_svc would have answered."""
        self._under_way -= 1
        if answered:
            self._size = min(self._size + 1, MOST_CHARGES)
        elif answered is not None:
            self._size = max(self._size - 2, FEWEST_CHARGES)
            self._failed_at = time.monotonic()


class GrpcPayments:
    """The Payments port over gRPC."""

    def __init__(self, client: RpcClient, key: SigningKey, *, timeout_seconds: float) -> None:
        self._client = client
        self._key = key
        self._timeout_seconds = timeout_seconds
        self._window = Window()

    async def process(self, order: Order, card_no: str) -> PaymentOutcome:
        """Charges the order's current attempt at most once.

        If pay_svc can't be reached, or enough is tried while it fails, the order is paid later.
        """
        if self._window.is_full:
            return PaymentOutcome(error=PAY_LATER)
        booking, amount = booking_to_proto(order.booking), money_to_proto(order.amount)
        self._key.sign(booking, order.id, amount.currency_code, amount.units, amount.nanos)
        request = pb.ProcessPaymentRequest(
            order_id=order.id,
            attempt_id=order.attempt_id,
            card_no=card_no,
            amount=amount,
            booking=booking,
        )
        answered: bool | None = None
        self._window.begin()
        try:
            payment = await self._client.call(
                PROCESS_PAYMENT, request, pb.Payment, timeout_seconds=self._timeout_seconds
            )
            answered = True
        except CallFailed as error:
            if remaining_seconds() > 0:  # otherwise it is the caller who could not wait
                answered = error.code not in OVERTAXED or error.reason == TOO_MANY_ATTEMPTS
            if error.reason == TOO_MANY_ATTEMPTS:
                return PaymentOutcome(error=too_many_attempts(error.retry_after_seconds))
            logger.warning("order %s: pay_svc did not answer: %s", order.id, error)
            if error.never_sent:
                return PaymentOutcome(error=PAY_LATER)
            # It may have been charged: then PaymentApproved will arrive, and expiry asks pay_svc before it releases the
            # room.
            return PaymentOutcome(error=IN_PROGRESS, settled=False)
        finally:
            self._window.end(answered=answered)
        return _outcome(payment)

    async def close(self, order_id: str) -> PaymentClosure:
        """Closes the payment unless a charge exists or may still follow. Raises PaymentsUnreachable."""
        request = pb.ClosePaymentRequest(order_id=order_id)
        try:
            answer = await self._client.call(
                CLOSE_PAYMENT, request, pb.ClosePaymentResponse, timeout_seconds=self._timeout_seconds
            )
        except CallFailed as error:
            logger.warning("order %s: pay_svc did not say whether it is paid: %s", order_id, error)
            raise PaymentsUnreachable from None
        canceled = answer.HasField("cancel_time")
        return PaymentClosure(
            closed=answer.closed,
            approved_at=answer.approve_time.ToDatetime(tzinfo=UTC) if answer.HasField("approve_time") else None,
            canceled_at=answer.cancel_time.ToDatetime(tzinfo=UTC) if canceled else None,
            refunded=money_from_proto(answer.refunded_amount, "refundedAmount") if canceled else None,
        )

    async def can_be_reached(self) -> bool:
        """Whether pay_svc can take payments at this moment."""
        try:
            request = pb.CheckAvailabilityRequest()
            await self._client.call(
                CHECK_AVAILABILITY, request, pb.CheckAvailabilityResponse, timeout_seconds=PROBE_SECONDS
            )
        except CallFailed as error:
            return error.code not in UNREACHABLE
        return True


def _outcome(payment: pb.Payment) -> PaymentOutcome:
    if payment.status == pb.Payment.APPROVED:
        return PaymentOutcome(approved_at=payment.update_time.ToDatetime(tzinfo=UTC))
    if payment.status == pb.Payment.DECLINED:
        return PaymentOutcome(error=declined(payment.decline_reason))
    # PENDING: this or another attempt is open. CANCELED: the event that says so is on its way.
    return PaymentOutcome(error=IN_PROGRESS, settled=False, attempt_id=payment.attempt_id or None)
