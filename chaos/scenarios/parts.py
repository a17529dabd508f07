"""Parts that fail."""

import asyncio
import math
import time
from contextlib import AsyncExitStack

import httpx

from chaos.load import GOOD, OK, Caller, Operation, a_stay
from chaos.nemesis import NoHarmDone, until
from chaos.rig import Rig, let_run
from chaos.scenario import scenario

LONG_ERROR_SECONDS, LONGEST_ERROR_SECONDS = 3, 5  # three by design; the machine may be busy sometimes
# Half of the orders; some probe whether pay_svc works again. On a machine where orders without a card take more than
# half of that in the same minute: twice as long as those.
LONGEST_WHILE_EJECTED_MS, AGAINST_UNPAID = 50, 2


@scenario(9, "NATS down, killed, its stream full, its disk full: bookings go on, the outbox drains in order")
async def nats_away(rig: Rig) -> None:
    """While it is down no caller must notice."""
    errors_before = len(list(rig.load.errors()))
    async with rig.nemesis.stopped("nats"):
        await let_run(rig.seconds(8))
    rig.demand(len(list(rig.load.errors())) == errors_before, "a caller noticed that NATS was down")
    waiting = await _unpublished(rig)
    began = time.monotonic()
    await until(lambda: _drained(rig), "the outboxes do not drain", seconds=120)
    rig.notes.append(f"{waiting} events waited, sent at {waiting / (time.monotonic() - began):.0f} /s")
    for _ in range(2):
        await rig.nemesis.kill("nats")
        await let_run(1)
    async with rig.nemesis.full_stream():
        await let_run(3)
    async with rig.nemesis.full_disk():
        await let_run(3)
    rig.demand(len(list(rig.load.errors())) == errors_before, "a caller noticed that NATS was ill")


async def _unpublished(rig: Rig) -> int:
    count = "SELECT count(*) FROM outbox WHERE published_at IS NULL"
    return sum([await rig.sql(name, count) for name in ("order_svc", "pay_svc", "reservation_svc")])


async def _drained(rig: Rig) -> bool:
    return await _unpublished(rig) < 10  # the load goes on


@scenario(10, "PostgreSQL restarted, killed, frozen, out of connections: errors and no hang, recovery by itself")
async def postgres_away(rig: Rig) -> None:
    """In the middle of commits: the load continues."""
    await rig.nemesis.restart("postgres")
    await rig.works_again()
    await rig.nemesis.kill("postgres")
    await rig.works_again()
    async with rig.nemesis.frozen("postgres"):
        await let_run(rig.seconds(5))
    await rig.works_again()
    async with rig.nemesis.starved():
        await let_run(rig.seconds(4))
    await rig.works_again()
    hung = [each for each in rig.history if each.status == 0 and "Timeout" in str(each.answer.get("error"))]
    rig.demand(not hung, f"{len(hung)} calls were not answered at all")
    errors = sorted(rig.load.errors(), key=lambda each: each.slowest)
    if not errors:
        raise NoHarmDone("no caller has noticed anything")
    slow, slowest = errors[math.floor(len(errors) * 0.95)], errors[-1]
    rig.demand(slow.slowest < LONG_ERROR_SECONDS, f"of twenty errors one took {slow.slowest:.1f} s")
    rig.demand(slowest.slowest < LONGEST_ERROR_SECONDS, f"an error took {slowest.slowest:.1f} s: {slowest.errors}")
    rig.notes.append(f"the slowest error took {slowest.slowest:.1f} s ({slowest.kind}: {slowest.errors})")


@scenario(11, "a frozen relay goes on beside its successor: nothing lost, nothing reordered")
async def two_relays(rig: Rig) -> None:
    """order_svc is frozen while it publishes; another relay takes over by itself and publishes the rest."""
    guest = rig.caller("victim")
    # Its relay is active before the other one starts.
    await until(lambda: _all_sent(rig), "the outbox does not drain")
    async with rig.replica("order_svc"), AsyncExitStack() as until_sent:
        async with rig.nemesis.frozen("nats"):  # so that events wait
            await asyncio.gather(*(_book_and_cancel(rig, guest) for _ in range(20)))
            await until_sent.enter_async_context(rig.nemesis.frozen("order_svc"))
            waiting = await rig.sql("order_svc", TWO_ARE_WAITING)
            if not waiting:
                raise NoHarmDone("the frozen relay had no order with two events to send")
        await until(lambda: _all_sent(rig), "the successor does not send")
        await let_run(rig.seconds(3))
    await until(lambda: _all_sent(rig), "the relay that was frozen does not go on")


async def _book_and_cancel(rig: Rig, guest: Caller) -> None:
    booked = await guest.book(None, **a_stay(rig.chance))
    await guest.cancel(booked.order_id)


# Orders whose events could change places.
TWO_ARE_WAITING = """
SELECT count(*)
FROM (
    SELECT aggregate_id
    FROM outbox
    WHERE published_at IS NULL
    GROUP BY aggregate_id
    HAVING count(*) > 1
) AS orders
"""


async def _all_sent(rig: Rig) -> bool:
    return not await rig.sql("order_svc", "SELECT count(*) FROM outbox WHERE published_at IS NULL")


@scenario(15, "all pay instances bad: quick answers while ejected, no retry storm, recovery by itself", load=False)
async def pay_bad(rig: Rig) -> None:
    """pay_svc is stopped; then it runs, but without its database."""
    guest = rig.caller("victim")
    for harm in (rig.nemesis.stopped("pay_svc"), rig.nemesis.cut("pay_svc", "postgres")):
        await until(lambda: _is_well(rig, guest), "bookings are not paid at first")
        unpaid = _milliseconds(await _book(rig, guest, None, rounds=10))
        longest = max(LONGEST_WHILE_EJECTED_MS, AGAINST_UNPAID * unpaid[len(unpaid) // 2])
        before, ejected_before = await _egress(rig, CALLS), await _egress(rig, EJECTIONS)
        async with harm:
            booked = await _book(rig, guest, GOOD, rounds=40)
            attempts = (await _egress(rig, CALLS) - before) / len(booked)
        if await _egress(rig, EJECTIONS) == ejected_before:
            raise NoHarmDone("pay_svc was never ejected")
        rig.demand(all(each.outcome == OK for each in booked), "an order was not taken")
        ejected = _milliseconds(booked[len(booked) // 4 :])
        usual = ejected[len(ejected) // 2]
        rig.notes.append(
            f"{attempts:.2f} attempts per call; while ejected p50 {usual:.0f} ms (at most {longest:.0f} ms), "
            f"p90 {ejected[math.floor(len(ejected) * 0.9)]:.0f} ms"
        )
        rig.demand(attempts <= 1.2, f"{attempts:.2f} attempts per call")
        rig.demand(usual < longest, f"while pay_svc was ejected an order took {usual:.0f} ms, not {longest:.0f} ms")
        healed = time.monotonic()
        await until(lambda: rig.books_paid(guest), "bookings are not paid again")
        rig.notes.append(f"paid again after {time.monotonic() - healed:.1f} s")


async def _book(rig: Rig, guest: Caller, card: str | None, *, rounds: int) -> list[Operation]:
    """Orders, in each round five for each replica of pay_svc: with as many failures it is ejected. (With fewer calls at
    a time, replicas are ejected one after the other, and the first may be back before the last.)
    """
    booked: list[Operation] = []
    for _ in range(rounds):
        at_once = range(5 * rig.nemesis.replicas_of("pay_svc"))
        booked += await asyncio.gather(*(guest.book(card, **a_stay(rig.chance)) for _ in at_once))
    return booked


def _milliseconds(operations: list[Operation]) -> list[float]:
    """How long each took, the shortest first."""
    return sorted(1000 * each.slowest for each in operations)


async def _is_well(rig: Rig, guest: Caller) -> bool:
    """Whether bookings are paid, and no instance is ejected any more because of an earlier harm."""
    return await rig.books_paid(guest) and await _egress(rig, EJECTED_NOW) == 0


CALLS = "http.egress.downstream_rq_total"
EJECTED_NOW = "cluster.pay_svc_egress.outlier_detection.ejections_active"
EJECTIONS = "cluster.pay_svc_egress.outlier_detection.ejections_enforced_total"


async def _egress(rig: Rig, name: str) -> int:
    """One of Envoy's counters."""
    admin = httpx.AsyncHTTPTransport(uds=str(rig.stack.admin_socket))
    async with httpx.AsyncClient(transport=admin, base_url="http://envoy") as client:
        return int((await client.get("/stats", params={"filter": f"^{name}$"})).text.split()[-1])
