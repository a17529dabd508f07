"""Calls to pay_svc, through the gateway's egress listener, whose breaker ejects a pay_svc that fails."""

import logging
from datetime import UTC

from gotohotel.pay.v1 import pay_service_pb2 as pb
from gotohotel.rpc import CallFailed, RpcClient
from gotohotel.wire import money_to_proto
from order_svc.domain import IN_PROGRESS, Order, PaymentError, PaymentOutcome
from order_svc.wire import booking_to_proto

logger = logging.getLogger(__name__)

PROCESS_PAYMENT = "/gotohotel.pay.v1.PayService/ProcessPayment"

MESSAGES = {
    "CARD_DECLINED": "The card was declined; try another one.",
    "INSUFFICIENT_FUNDS": "The card has not enough funds; try another one.",
    "EXPIRED_CARD": "The card has expired; try another one.",
}
PAY_LATER = PaymentError(
    reason="PAYMENT_UNAVAILABLE",
    message="Payments can't be taken at this moment; the room is held, pay a little later.",
    retry_after_seconds=5,
)


class GrpcPayments:
    """The Payments port over gRPC."""

    def __init__(self, client: RpcClient, *, timeout_seconds: float) -> None:
        self._client = client
        self._timeout_seconds = timeout_seconds

    async def process(self, order: Order, card_no: str) -> PaymentOutcome:
        """Charges the order's current attempt at most once. When pay_svc can't be reached the order is paid later."""
        request = pb.ProcessPaymentRequest(
            order_id=order.id,
            attempt_id=order.attempt_id,
            card_no=card_no,
            amount=money_to_proto(order.amount),
            booking=booking_to_proto(order.booking),
        )
        try:
            payment = await self._client.call(
                PROCESS_PAYMENT, request, pb.Payment, at_most_seconds=self._timeout_seconds
            )
        except CallFailed as error:
            # It may have been charged all the same: then PaymentApproved says so, and paying again finds out too.
            logger.warning("order %s: pay_svc did not answer: %s", order.id, error)
            return PaymentOutcome(error=PAY_LATER, settled=error.never_sent)
        return _outcome(payment)


def _outcome(payment: pb.Payment) -> PaymentOutcome:
    if payment.status == pb.Payment.APPROVED:
        return PaymentOutcome(approved_at=payment.update_time.ToDatetime(tzinfo=UTC))
    if payment.status == pb.Payment.DECLINED:
        reason = payment.decline_reason
        if reason in MESSAGES:
            return PaymentOutcome(error=PaymentError(reason=reason, message=MESSAGES[reason]))
        return PaymentOutcome(error=PAY_LATER)
    # PENDING: another try is under way. CANCELED: the order's cancel is on its way here as an event.
    return PaymentOutcome(error=IN_PROGRESS, settled=False)
