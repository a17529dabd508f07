"""Rollouts: late events, relays that can't publish, two releases side by side, clocks that differ."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from chaos.load import ERROR, LOST_ANSWER, OK, a_stay
from chaos.nemesis import NoHarmDone, until
from chaos.next_release import NEW_EVENT, NEW_FIELD, migrate, next_release
from chaos.rig import Rig, let_run, paid
from chaos.scenario import scenario
from chaos.scenarios.money import silent_processor
from gotohotel.bus.streams import EVENTS
from gotohotel.outbox import RELAY_LOCK
from ops.services import SERVICES
from ops.stream import jetstream

TIME_IS_OVER = (
    "UPDATE orders SET expires_at = now(), attempt_until = NULL, next_expiry_at = NULL WHERE id = ANY($1::uuid[])"
)
# Those that the expiry job has looked at since.
LOOKED_AT = "SELECT count(*) FROM orders WHERE id = ANY($1::uuid[]) AND next_expiry_at IS NOT NULL"
UNPAID = "SELECT count(*) FROM orders WHERE id = ANY($1::uuid[]) AND status = 'PAYMENT_PENDING'"
EXPIRED = "SELECT count(*) FROM orders WHERE id = ANY($1::uuid[]) AND expired_at IS NOT NULL"
APPROVED = "SELECT count(*) FROM payments WHERE order_id = ANY($1::uuid[]) AND status = 'APPROVED'"


@scenario(23, "late news: an order that was charged does not expire, whoever was away for longer than its time to pay")
async def late_news(rig: Rig) -> None:
    """NATS away, order_svc dead, the processor silent."""
    await _nats_is_away(rig)
    await _order_svc_is_dead(rig)
    await _the_processor_is_silent(rig)


async def _charged_unheard(rig: Rig) -> list[str]:
    """Orders that pay_svc charges while its answers do not reach order_svc."""
    guest = rig.caller("victim")
    async with rig.nemesis.cut("order_svc", "egress", there=False):
        booked = await asyncio.gather(*(guest.book(**a_stay(rig.chance)) for _ in range(8)))
    orders = [each.order_id for each in booked]
    rig.demand(all(each.outcome == OK for each in booked), "an order was not taken")
    reasons = {each.answer.get("paymentError", {}).get("reason") for each in booked}
    rig.demand(reasons == {"PAYMENT_IN_PROGRESS"}, f"a payment whose fate is unknown was called {reasons}")
    charged = await rig.sql("pay_svc", APPROVED, orders)
    if charged != 8 or await rig.sql("order_svc", UNPAID, orders) != 8:
        raise NoHarmDone(f"{charged} of 8 orders were charged unheard")
    return orders


async def _nats_is_away(rig: Rig) -> None:
    async with rig.nemesis.stopped("nats"):
        orders = await _charged_unheard(rig)
        await rig.sql("order_svc", TIME_IS_OVER, orders)
        await until(lambda: _are_paid(rig, orders), "the expiry does not find out that they are paid")
        rig.demand(not await rig.sql("order_svc", EXPIRED, orders), "a charged order expired while NATS was away")
    await rig.received(orders)


async def _order_svc_is_dead(rig: Rig) -> None:
    """It restarts after the time to pay is over, and its job runs before it receives any event.

    The desk has confirmed some.
    """
    desk = rig.caller("desk", role="desk")
    async with AsyncExitStack() as deaf:
        await deaf.enter_async_context(rig.nemesis.cut("order_svc", "nats"))
        orders = await _charged_unheard(rig)
        await rig.received(orders)
        await asyncio.gather(*(desk.decide(order_id, "confirm") for order_id in orders[:4]))
        async with rig.nemesis.stopped("order_svc"):
            await rig.sql("order_svc", TIME_IS_OVER, orders)
        await until(lambda: _are_paid(rig, orders), "the expiry does not find out that they are paid")
        rig.demand(not await rig.sql("order_svc", EXPIRED, orders), "a charged order expired after a restart")
    for order_id in orders[:4]:
        await until(lambda order_id=order_id: rig.order_is(order_id, "CONFIRMED"), f"{order_id} is not CONFIRMED")


async def _the_processor_is_silent(rig: Rig) -> None:
    """Half of the charges were made.

    Nothing expires before that is known; then the orders that were not charged expire.
    """
    guest = rig.caller("victim")
    async with silent_processor(rig):
        cards = [LOST_ANSWER, ERROR] * 4
        booked = await asyncio.gather(*(guest.book(card, **a_stay(rig.chance)) for card in cards))
        orders = [each.order_id for each in booked]
        await rig.sql("order_svc", TIME_IS_OVER, orders)

        async def all_looked_at() -> bool:
            return bool(await rig.sql("order_svc", LOOKED_AT, orders) == 8)

        await until(all_looked_at, "the expiry job did not look at them", error=NoHarmDone)
        await let_run(6)  # and again
        unpaid = await rig.sql("order_svc", UNPAID, orders)
        rig.demand(unpaid == 8, f"{unpaid} of 8 wait while the processor is silent")
    for number, order_id in enumerate(orders):
        ends, standing = ("EXPIRED", 0) if number % 2 else ("PAID", 1)
        await until(
            lambda order_id=order_id, ends=ends: rig.order_is(order_id, ends), f"{order_id} is not {ends}", seconds=60
        )
        rig.demand((await rig.charges(order_id))[1] == standing, f"{order_id}, {ends}, is not settled")


async def _are_paid(rig: Rig, orders: list[str]) -> bool:
    count = "SELECT count(*) FROM orders WHERE id = ANY($1::uuid[]) AND paid_at IS NOT NULL"
    return bool(await rig.sql("order_svc", count, orders) == len(orders))


# ---------------------------------------------------------------------------------------------- relays

HOLDER = """
SELECT count(*)
FROM pg_locks
WHERE locktype = 'advisory'
  AND granted
  AND objid = $1
  AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""


@scenario(24, "a relay with the lock that can't publish, cut off or frozen: a healthy replica sends instead")
async def stuck_relay(rig: Rig) -> None:
    """The stack's own order_svc has the lock; the replica beside it works."""
    guest = rig.caller("victim")
    await _has_the_lock_alone(rig)
    async with rig.replica("order_svc"):
        async with rig.nemesis.cut("order_svc", "nats"):
            orders = await _book_some(rig)
            began = time.monotonic()
            await until(lambda: _are_sent(rig, orders), "events wait behind a relay that is cut off")
            rig.notes.append(f"cut off: sent after {time.monotonic() - began:.1f} s")
        await until(lambda: _nothing_waits(rig), "the outbox does not drain")
    await _has_the_lock_alone(rig)
    async with rig.replica("order_svc") as healthy, rig.nemesis.frozen("order_svc"):
        rig.route("order_svc", healthy.port)
        try:
            orders = await _book_some(rig)
            began = time.monotonic()
            await until(lambda: _are_sent(rig, orders), "events wait behind a frozen relay")
            rig.notes.append(f"frozen: sent after {time.monotonic() - began:.1f} s")
        finally:
            rig.route("order_svc")
    await rig.books_paid(guest)


async def _has_the_lock_alone(rig: Rig) -> None:
    """Makes sure the stack's own relay is active before another one starts."""
    await until(lambda: _nothing_waits(rig), "the outbox does not drain")

    async def has_it() -> bool:
        return bool(await rig.sql("order_svc", HOLDER, RELAY_LOCK) == 1)

    await until(has_it, "nobody has the lock", error=NoHarmDone)


async def _book_some(rig: Rig) -> list[str]:
    guest = rig.caller("victim")
    booked = await asyncio.gather(*(guest.book(**a_stay(rig.chance)) for _ in range(10)))
    return [each.order_id for each in booked if each.outcome == OK]


async def _are_sent(rig: Rig, orders: list[str]) -> bool:
    count = "SELECT count(*) FROM outbox WHERE aggregate_id = ANY($1) AND published_at IS NULL"
    return not await rig.sql("order_svc", count, orders)


async def _nothing_waits(rig: Rig) -> bool:
    count = "SELECT count(*) FROM outbox WHERE published_at IS NULL AND occurred_at < now() - interval '1 second'"
    return not await rig.sql("order_svc", count)


# ---------------------------------------------------------------------------------------------- two releases


@scenario(25, "a release beside the next one, and back again: nobody notices, nothing is lost or becomes a dead letter")
async def two_releases(rig: Rig) -> None:
    """Beside this release one replica of each service with a further field, event, subscription and migration."""
    desk = rig.caller("desk", role="desk")
    olds = rig.nemesis.replicas_of("order_svc")  # the more there are, the longer an event goes to and fro
    with next_release() as code:
        await asyncio.to_thread(migrate, code, rig.stack.home)
        async with _beside(rig, code) as ports:
            rig.nemesis.note("rollout", "all services")
            await _confirm_some(rig)  # calls reach this release, events both
            for name in SERVICES:
                rig.route(name, ports[name])
            newer = await _confirm_some(rig)  # calls reach the next release, events both
            for name in SERVICES:
                rig.route(name)
            rig.nemesis.note("rollback", "all services")
            stored = "SELECT count(*) FROM {} WHERE order_id = ANY($1::uuid[]) AND booking ? $2"
            for database, table in (("pay_svc", "payments"), ("reservation_svc", "reservations")):
                if not await rig.sql(database, stored.format(table), newer, NEW_FIELD):
                    raise NoHarmDone(f"no booking of {database} has the new field")
            greeted = "SELECT count(*) FROM outbox WHERE type = $1 AND aggregate_id = ANY($2)"
            if not await rig.sql("reservation_svc", greeted, NEW_EVENT, newer):
                raise NoHarmDone("nothing new was announced")
            # This release works on what the next one has written.
            ended = await asyncio.gather(*(desk.decide(order_id, "cancel") for order_id in newer[:4]))
            rig.demand(all(each.outcome == OK for each in ended), "this release can't cancel what the next one wrote")
            listed = await desk.look("/reservations?pageSize=200")
            rig.demand(listed.outcome == OK, "this release can't list what the next one wrote")
            kept = await rig.sql("reservation_svc", stored.format("reservations"), newer[:4], NEW_FIELD)
            rig.demand(kept == 4, f"this release has kept the new field in {kept} of 4 bookings that it saved")
            await until(lambda: _all_greeted(rig), "what only the next release knows is not handled", seconds=90 * olds)


@asynccontextmanager
async def _beside(rig: Rig, code: object) -> AsyncIterator[dict[str, int]]:
    """A replica of each service from that code, all running; name → port."""
    async with AsyncExitStack() as running:
        replicas = {name: await running.enter_async_context(rig.replica(name, code=code)) for name in SERVICES}  # type: ignore[arg-type]
        for name, replica in replicas.items():
            await until(lambda replica=replica: replica.said("serves on port"), f"the next {name} does not serve")
        yield {name: replica.port for name, replica in replicas.items()}
        for name, replica in replicas.items():
            rig.demand(not replica.said("is a dead letter"), f"the next {name} has made a dead letter")


async def _confirm_some(rig: Rig) -> list[str]:
    """Orders that are booked, paid, received and confirmed."""
    guest, desk = rig.caller("victim"), rig.caller("desk", role="desk")
    orders = paid(await asyncio.gather(*(guest.book(**a_stay(rig.chance)) for _ in range(12))))
    rig.demand(len(orders) > 8, f"only {len(orders)} of 12 orders were paid")
    await rig.received(orders)
    decided = await asyncio.gather(*(desk.decide(order_id, "confirm") for order_id in orders))
    refused = [f"{each.order_id}: {each.answer}" for each in decided if each.outcome != OK]
    rig.demand(not refused, f"a received reservation could not be confirmed: {refused}")
    for order_id in orders:
        await until(lambda order_id=order_id: rig.order_is(order_id, "CONFIRMED"), f"{order_id} is not CONFIRMED")
    return orders


async def _all_greeted(rig: Rig) -> bool:
    """Whether the next release's replicas have handled everything that was handed back to them."""
    async with jetstream(rig.stack) as js:
        waiting = [await js.consumer_info(str(EVENTS.name), name) for name in ("order_svc", "mypage_svc")]
    greeted = "SELECT array_agg(event_id) FROM outbox WHERE type = $1"
    events = await rig.sql("reservation_svc", greeted, NEW_EVENT)
    handled = "SELECT count(*) FROM inbox WHERE event_id = ANY($1::uuid[])"
    known = [await rig.sql(name, handled, events) for name in ("order_svc", "mypage_svc")]
    return known == [len(events)] * 2 and not any((each.num_redelivered or 0) for each in waiting)


# ---------------------------------------------------------------------------------------------- clocks

AHEAD_SECONDS = 20 * 60
IS_AHEAD = "off the database's, which decides"
TIMES = (
    "SELECT count(*) FROM orders WHERE id = ANY($1::uuid[]) AND abs(extract(epoch FROM now() - created_at)) < 60 "
    "AND extract(epoch FROM expires_at - created_at) BETWEEN 890 AND 910"
)


@scenario(26, "replicas whose clocks are 20 minutes ahead: nothing expires early, every time is the database's")
async def fast_clocks(rig: Rig) -> None:
    """They run the jobs beside the others, and then take the calls."""
    guest, desk = rig.caller("victim"), rig.caller("desk", role="desk")
    ahead = ("order_svc", "pay_svc", "reservation_svc")
    async with AsyncExitStack() as running:
        replicas = {
            name: await running.enter_async_context(rig.replica(name, ahead_seconds=AHEAD_SECONDS)) for name in ahead
        }
        for name, replica in replicas.items():
            await until(lambda replica=replica: replica.said(IS_AHEAD), f"{name} is not ahead", error=NoHarmDone)
        rig.nemesis.note("clock", f"{', '.join(ahead)} {AHEAD_SECONDS} s ahead")
        first = [(await guest.book(None, **a_stay(rig.chance))).order_id for _ in range(6)]
        for name, replica in replicas.items():
            rig.route(name, replica.port)
        second = [(await guest.book(None, **a_stay(rig.chance))).order_id for _ in range(6)]
        rig.demand(await rig.sql("order_svc", TIMES, second) == 6, "an order's times are the replica's own")
        await let_run(rig.seconds(12))  # the expiry runs every five seconds, in both
        unpaid = await rig.sql("order_svc", UNPAID, first + second)
        rig.demand(unpaid == 12, f"{unpaid} of 12 fresh orders are still unpaid")
        answers = await asyncio.gather(*(guest.pay(order_id) for order_id in first + second))
        rig.demand(all(each.is_paid for each in answers), "an order can't be paid in its time")
        await rig.received(first + second)
        ended = await asyncio.gather(*(desk.decide(order_id, "reject") for order_id in second))
        rig.demand(all(each.outcome == OK for each in ended), "a reservation can't be rejected")
        for name in replicas:
            rig.route(name)
