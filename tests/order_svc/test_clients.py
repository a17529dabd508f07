"""How the Payments port translates pay_svc's answers and failures."""

import asyncio
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message
from grpc.aio import AioRpcError, Metadata

from gotohotel.domain import Money
from gotohotel.pay.v1 import pay_service_pb2 as pb
from gotohotel.rpc import deadline
from gotohotel.rpc.client import CallFailed
from gotohotel.signatures import SigningKey
from order_svc.clients import FEWEST_CHARGES, MOST_CHARGES, GrpcPayments
from order_svc.domain import PAY_LATER, Booking, Order, PaymentOutcome, PaymentsUnreachable, RoomType, Stay

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
    return await payments(answer).process(an_order(), "4242424242424242")


def an_order() -> Order:
    """An order that is not paid."""
    booking = Booking(
        owner="a", name="A", phone_no="", room_type="P", guest_cnt=1, stay=Stay(date(2026, 1, 1), date(2026, 1, 2))
    )
    room_type = RoomType(
        id="P", version=1, display_name="P", capacity=1, max_guests=1, nightly_rate=Money("KRW", Decimal(1))
    )
    return Order.place("o", booking, room_type, placed_at=NOON, expires_at=NOON)


class Answerable:
    """A client whose calls wait until the test answers them."""

    def __init__(self) -> None:
        self.calls: list[asyncio.Future[Message]] = []

    async def call(self, *_: Any, **__: Any) -> Message:
        """Like RpcClient.call."""
        self.calls.append(asyncio.get_running_loop().create_future())
        return await self.calls[-1]

    async def answer_all(self, answer: Message | CallFailed) -> None:
        """Ends the calls that wait."""
        waiting, self.calls = self.calls, []
        for call in waiting:
            if isinstance(answer, CallFailed):
                call.set_exception(answer)
            else:
                call.set_result(answer)
        await asyncio.sleep(0)


async def tried_at_once(port: GrpcPayments, client: Answerable, answer: Message | CallFailed) -> int:
    """How many of very many charges at once are tried; all of them get this answer."""
    charges = [asyncio.create_task(port.process(an_order(), "4242424242424242")) for _ in range(2 * MOST_CHARGES)]
    await asyncio.sleep(0)
    tried = len(client.calls)
    await client.answer_all(answer)
    outcomes = await asyncio.gather(*charges)
    assert sum(outcome.error == PAY_LATER for outcome in outcomes) >= 2 * MOST_CHARGES - tried
    return tried


async def test_few_charges_are_tried_while_pay_svc_fails_and_more_for_each_that_it_answers() -> None:
    """So a pay_svc that has just come back is not met by all guests at once."""
    client: Any = Answerable()
    port = GrpcPayments(client, SigningKey("a secret of this test, 32 letters"), timeout_seconds=1)
    approved, away = pb.Payment(status=pb.Payment.APPROVED), failed(grpc.StatusCode.UNAVAILABLE, never_sent=True)

    assert await tried_at_once(port, client, away) == MOST_CHARGES
    assert await tried_at_once(port, client, away) == FEWEST_CHARGES
    assert await tried_at_once(port, client, approved) == FEWEST_CHARGES
    assert await tried_at_once(port, client, approved) == 2 * FEWEST_CHARGES
    assert await tried_at_once(port, client, failed(grpc.StatusCode.ABORTED)) == 4 * FEWEST_CHARGES
    for _ in range(3):
        tried = await tried_at_once(port, client, approved)
    assert tried == MOST_CHARGES
    assert await tried_at_once(port, client, failed(grpc.StatusCode.RESOURCE_EXHAUSTED)) == MOST_CHARGES
    assert await tried_at_once(port, client, approved) == FEWEST_CHARGES


async def test_all_charges_are_tried_when_pay_svc_has_not_failed_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if few guests pay, so that few answers open the window."""
    client: Any = Answerable()
    port = GrpcPayments(client, SigningKey("a secret of this test, 32 letters"), timeout_seconds=1)
    assert await tried_at_once(port, client, failed(grpc.StatusCode.UNAVAILABLE)) == MOST_CHARGES
    assert await tried_at_once(port, client, pb.Payment(status=pb.Payment.APPROVED)) == FEWEST_CHARGES

    monkeypatch.setattr("order_svc.clients.WELL_SECONDS", 0.0)

    assert await tried_at_once(port, client, pb.Payment(status=pb.Payment.APPROVED)) == MOST_CHARGES


async def test_a_charge_that_the_caller_could_not_wait_for_is_no_failure_of_pay_svc() -> None:
    """Guests with short deadlines must not take from others what these may try."""
    client: Any = Answerable()
    port = GrpcPayments(client, SigningKey("a secret of this test, 32 letters"), timeout_seconds=1)
    deadline.enter(0.01)

    assert await tried_at_once(port, client, failed(grpc.StatusCode.DEADLINE_EXCEEDED)) == MOST_CHARGES
    assert await tried_at_once(port, client, failed(grpc.StatusCode.DEADLINE_EXCEEDED)) == MOST_CHARGES


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
