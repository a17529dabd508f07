"""How the Payments port translates pay_svc's answers and failures."""

from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message
from grpc.aio import AioRpcError, Metadata

from gotohotel.domain import Money
from gotohotel.pay.v1 import pay_service_pb2 as pb
from gotohotel.rpc.client import CallFailed
from gotohotel.signatures import SigningKey
from order_svc.clients import GrpcPayments
from order_svc.domain import Booking, Order, PaymentOutcome, PaymentsUnreachable, RoomType, Stay

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


class Answering:
    """A client that returns the given answer or raises the given error."""

    def __init__(self, answer: Message | CallFailed) -> None:
        self._answer = answer

    async def call(self, *_: Any, **__: Any) -> Any:
        """Like RpcClient.call."""
        if isinstance(self._answer, CallFailed):
            raise self._answer
        return self._answer


def failed(code: grpc.StatusCode, *, never_sent: bool = False) -> CallFailed:
    """The error of a call without an answer."""
    return CallFailed(AioRpcError(code, Metadata(), Metadata()), never_sent=never_sent)


def payments(answer: Message | CallFailed) -> GrpcPayments:
    """The Payments port over a client with this answer."""
    client: Any = Answering(answer)
    return GrpcPayments(client, SigningKey("a secret of this test, 32 letters"), timeout_seconds=1)


async def outcome_of(answer: Message | CallFailed) -> PaymentOutcome:
    """The outcome of an attempt if the client gives this answer."""
    booking = Booking(
        owner="a", name="A", phone_no="", room_type="P", guest_cnt=1, stay=Stay(date(2026, 1, 1), date(2026, 1, 2))
    )
    room_type = RoomType(
        id="P", version=1, display_name="P", capacity=1, max_guests=1, nightly_rate=Money("KRW", Decimal(1))
    )
    order = Order.place("o", booking, room_type, placed_at=NOON, expires_at=NOON)
    return await payments(answer).process(order, "4242424242424242")


async def test_only_a_call_that_was_never_sent_means_pay_later() -> None:
    """After any other failed call the card may have been charged, so the payment is reported as in progress."""
    never_sent = await outcome_of(failed(grpc.StatusCode.UNAVAILABLE, never_sent=True))
    assert never_sent.error is not None
    assert (never_sent.error.reason, never_sent.settled) == ("PAYMENT_UNAVAILABLE", True)
    for code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.INTERNAL):
        unknown = await outcome_of(failed(code))
        assert unknown.error is not None
        assert (unknown.error.reason, unknown.settled) == ("PAYMENT_IN_PROGRESS", False)


async def test_the_attempt_that_pay_svc_works_on_is_known() -> None:
    """The outcome contains the id of that attempt, even if another call made it."""
    assert (await outcome_of(pb.Payment(status=pb.Payment.PENDING, attempt_id="other"))).attempt_id == "other"


async def test_whether_a_payment_is_closed_is_never_guessed() -> None:
    """If pay_svc does not answer, `close` raises PaymentsUnreachable."""
    with pytest.raises(PaymentsUnreachable):
        await payments(failed(grpc.StatusCode.UNAVAILABLE)).close("o")
    assert (await payments(pb.ClosePaymentResponse(closed=True)).close("o")).closed
    approved = pb.ClosePaymentResponse()
    approved.approve_time.FromDatetime(NOON)
    assert (await payments(approved).close("o")).approved_at == NOON


async def test_any_answer_shows_that_pay_svc_can_be_reached() -> None:
    """This includes UNIMPLEMENTED from a release without CheckAvailability."""
    assert await payments(failed(grpc.StatusCode.UNIMPLEMENTED)).can_be_reached()
    assert await payments(pb.CheckAvailabilityResponse()).can_be_reached()
    assert not await payments(failed(grpc.StatusCode.UNAVAILABLE)).can_be_reached()
    assert not await payments(failed(grpc.StatusCode.DEADLINE_EXCEEDED)).can_be_reached()
