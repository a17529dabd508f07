"""Calls to pay_svc, through the gateway's egress listener."""

from gotohotel.domain import Actor
from gotohotel.pay.v1 import pay_service_pb2 as pb
from gotohotel.rpc.client import CallFailed, RpcClient
from gotohotel.wire import actor_to_proto
from reservation_svc.domain import PaymentNotCanceled

CANCEL_PAYMENT = "/gotohotel.pay.v1.PayService/CancelPayment"


class GrpcPayments:
    """The Payments port over gRPC."""

    def __init__(self, client: RpcClient, *, timeout_seconds: float) -> None:
        self._client = client
        self._timeout_seconds = timeout_seconds

    async def cancel(self, order_id: str, *, by: Actor) -> None:
        """Has the payment canceled. Raises PaymentNotCanceled."""
        request = pb.CancelPaymentRequest(order_id=order_id, actor=actor_to_proto(by))
        try:
            await self._client.call(CANCEL_PAYMENT, request, pb.Payment, timeout_seconds=self._timeout_seconds)
        except CallFailed as error:
            raise PaymentNotCanceled(str(error), never_asked=error.never_sent) from error
