"""Repeated requests in the IdempotencyStore, on real PostgreSQL."""

import asyncio
from typing import Any

import pytest

from gotohotel import idempotency
from gotohotel.claims import ABANDONED_AFTER_SECONDS
from gotohotel.database import Database
from gotohotel.domain import Invalid
from gotohotel.idempotency import IdempotencyStore, RequestIdReused, RequestInProgress
from gotohotel.order.v1.order_service_pb2 import CancelOrderRequest, Order
from gotohotel.rpc.deadline import MAX_CALL_SECONDS


def request(reason: str = "", request_id: str = "r1") -> CancelOrderRequest:
    """A mutating request."""
    return CancelOrderRequest(order_id="o", request_id=request_id, reason=reason)


class Counter:
    """An act that returns a different answer each time it runs."""

    def __init__(self) -> None:
        self.runs = 0

    async def in_transaction(self, _: Any) -> Order:
        return await self.in_steps()

    async def in_steps(self) -> Order:
        self.runs += 1
        await asyncio.sleep(0.05)
        return Order(id=f"order {self.runs}")


async def test_the_same_request_many_times_at_once_acts_once(order_database: Database) -> None:
    """Every call gets the same answer, whether the act is one transaction or several."""
    requests = IdempotencyStore(order_database, b"key")

    methods: list[Any] = [requests.once, requests.in_steps]
    for number, method in enumerate(methods):
        counter = Counter()
        act = counter.in_transaction if number == 0 else counter.in_steps
        same = request(request_id=f"r{number}")
        answers = await asyncio.gather(*(method(same, Order, act, subject="alice") for _ in range(10)))

        assert counter.runs == 1
        assert {answer.id for answer in answers} == {"order 1"}


async def test_the_same_id_with_another_body_is_refused(order_database: Database) -> None:
    """The store raises RequestIdReused, so that a client's mistake does not count as a repetition."""
    requests, counter = IdempotencyStore(order_database, b"key"), Counter()
    await requests.once(request(), Order, counter.in_transaction, subject="alice")

    with pytest.raises(RequestIdReused):
        await requests.once(request("another"), Order, counter.in_transaction, subject="alice")

    assert counter.runs == 1


async def test_another_callers_id_is_another_request(order_database: Database) -> None:
    """Two guests may choose the same request id."""
    requests, counter = IdempotencyStore(order_database, b"key"), Counter()

    await requests.once(request(), Order, counter.in_transaction, subject="alice")
    await requests.once(request(), Order, counter.in_transaction, subject="bob")

    assert counter.runs == 2


async def test_a_request_that_failed_can_be_made_again(order_database: Database) -> None:
    """Only answers are stored, not errors, so the act runs again."""
    requests, counter = IdempotencyStore(order_database, b"key"), Counter()

    async def fail(*_: Any) -> Order:
        raise ZeroDivisionError

    for method, act in ((requests.once, counter.in_transaction), (requests.in_steps, counter.in_steps)):
        call: Any = method
        same = request(request_id=method.__name__)
        with pytest.raises(ZeroDivisionError):
            await call(same, Order, fail, subject="alice")
        await call(same, Order, act, subject="alice")

    assert counter.runs == 2


async def test_a_request_whose_process_died_is_taken_over(order_database: Database) -> None:
    """A repeated request takes over a claim that has no answer and was not renewed for too long."""
    requests, counter = IdempotencyStore(order_database, b"key"), Counter()
    claim = requests.claim_of(request(), subject="alice")
    assert claim is not None
    await requests.claim(order_database.autocommit, claim)
    await order_database.autocommit.execute("UPDATE requests SET claimed_at = now() - interval '1 minute'")

    answer = await requests.in_steps(request(), Order, counter.in_steps, subject="alice")

    assert answer.id == "order 1"


@pytest.mark.parametrize("failing", ["RELEASE", "ANSWER"])
async def test_a_request_that_met_a_database_that_was_away_can_be_made_again_at_once(
    order_database: Database, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    """If the claim could not be released, or the answer not stored, a repeated request does not wait for a time-out."""
    requests, counter = IdempotencyStore(order_database, b"key"), Counter()
    away = "SELECT pg_sleep(5) WHERE concat($1::text, $2::text, $3::text) <> ''"

    async def fail() -> Order:
        raise ConnectionError

    with monkeypatch.context() as broken:
        broken.setattr(idempotency, "RELEASE", away)
        if failing == "RELEASE":
            with pytest.raises(ConnectionError):
                await requests.in_steps(request(), Order, fail, subject="alice")
        else:
            broken.setattr(idempotency, "ANSWER", away + " AND $4::bytea IS NOT NULL")
            await requests.in_steps(request(), Order, counter.in_steps, subject="alice")
    runs = counter.runs

    async with asyncio.timeout(5):
        await requests.in_steps(request(), Order, counter.in_steps, subject="alice")
        await requests.in_steps(request(), Order, counter.in_steps, subject="alice")

    assert counter.runs == runs + 1


async def test_what_was_noted_of_ended_calls_is_forgotten(
    order_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A claim that anybody may take over by now is removed from memory."""
    monkeypatch.setattr("gotohotel.claims.ABANDONED_AFTER_SECONDS", -1)
    requests = IdempotencyStore(order_database, b"key")
    for number in range(5):
        requests._live.note_ended(requests.claim_of(CancelOrderRequest(request_id=str(number)), subject="alice"))

    assert len(requests._live._ended) == 1


async def test_a_claim_whose_answer_was_lost_is_nobodys(
    order_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the claim was stored but the call ended with an error, a repeated request takes it over at once."""
    requests, counter = IdempotencyStore(order_database, b"key"), Counter()
    stored = requests.claim

    async def lose_the_answer(*arguments: Any) -> bool:
        await stored(*arguments)
        raise TimeoutError

    with monkeypatch.context() as frozen:
        frozen.setattr(requests, "claim", lose_the_answer)
        with pytest.raises(TimeoutError):
            await requests.in_steps(request(), Order, counter.in_steps, subject="alice")

    async with asyncio.timeout(5):
        answer = await requests.in_steps(request(), Order, counter.in_steps, subject="alice")
    assert answer.id == "order 1"


async def test_a_long_request_id_is_refused(order_database: Database) -> None:
    """The limit is 64 characters, which is enough for any UUID."""
    with pytest.raises(Invalid, match="requestId"):
        IdempotencyStore(order_database, b"key").claim_of(request(request_id="x" * 65), subject="alice")


async def test_a_duplicate_that_fails_does_not_orphan_the_claim_of_a_live_call(
    order_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A repeated request waits for the running call, even if another repetition has failed."""
    requests, acting = IdempotencyStore(order_database, b"key"), asyncio.Event()
    counter, finish = Counter(), asyncio.Event()

    async def slow() -> Order:
        acting.set()
        await finish.wait()
        return await counter.in_steps()

    first = asyncio.create_task(requests.in_steps(request(), Order, slow, subject="alice"))
    await acting.wait()
    with monkeypatch.context() as frozen:
        frozen.setattr(requests, "claim", _time_out)
        with pytest.raises(TimeoutError):
            await requests.in_steps(request(), Order, counter.in_steps, subject="alice")
    third = asyncio.create_task(requests.in_steps(request(), Order, counter.in_steps, subject="alice"))
    ended, _ = await asyncio.wait([third], timeout=1)
    assert not ended
    finish.set()

    assert {(await first).id, (await third).id} == {"order 1"}
    assert counter.runs == 1


async def _time_out(*_: Any) -> bool:
    raise TimeoutError


async def test_a_repetition_after_a_crash_has_time_to_act(order_database: Database) -> None:
    """It waits until the claim counts as abandoned, which is less than half of a call's deadline."""
    dead, alive, counter = IdempotencyStore(order_database, b"key"), IdempotencyStore(order_database, b"key"), Counter()
    claim = dead.claim_of(request(), subject="alice")
    assert claim is not None
    await dead.claim(order_database.autocommit, claim)
    age = "UPDATE requests SET claimed_at = now() - make_interval(secs => $1)"
    await order_database.autocommit.execute(age, ABANDONED_AFTER_SECONDS - 0.5)

    with dead._live.acting(claim):
        dead._live._live[claim.key] = (1, -1e6)  # it has been running for long
        await dead.renew()
        assert ABANDONED_AFTER_SECONDS < 0.5 * MAX_CALL_SECONDS
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await alive.in_steps(request(), Order, counter.in_steps, subject="alice")
    async with asyncio.timeout(2 * ABANDONED_AFTER_SECONDS):
        answer = await alive.in_steps(request(), Order, counter.in_steps, subject="alice")

    assert answer.id == "order 1"


async def test_of_two_repetitions_one_takes_an_orphaned_request_over(order_database: Database) -> None:
    """The others wait for its answer, and the act runs once."""
    requests, counter = IdempotencyStore(order_database, b"key"), Counter()
    claim = requests.claim_of(request(), subject="alice")
    assert claim is not None
    await requests.claim(order_database.autocommit, claim)
    await order_database.autocommit.execute("UPDATE requests SET claimed_at = now() - interval '1 minute'")

    same = (requests.in_steps(request(), Order, counter.in_steps, subject="alice") for _ in range(10))
    answers = await asyncio.gather(*same)

    assert counter.runs == 1
    assert {answer.id for answer in answers} == {"order 1"}


async def test_a_claim_of_another_release_is_in_progress(order_database: Database) -> None:
    """A claim without an answer, left by a release in which the method ran in steps, raises RequestInProgress."""
    requests = IdempotencyStore(order_database, b"key")
    claim = requests.claim_of(request(), subject="alice")
    assert claim is not None
    await requests.claim(order_database.autocommit, claim)

    with pytest.raises(RequestInProgress):
        await requests.once(request(), Order, Counter().in_transaction, subject="alice")
