"""Events: lost, repeated, shuffled, poisonous."""

import asyncio
from contextlib import AsyncExitStack, suppress
from typing import Any

import nats.errors
from nats.js import JetStreamContext
from nats.js.errors import NotFoundError

from chaos.load import OK, Caller, a_stay
from chaos.nemesis import NoHarmDone, NotAsItMust, until
from chaos.rig import Rig, paid
from chaos.scenario import scenario
from chaos.watcher import under_watch
from gotohotel.bus.streams import EVENTS
from ops import dead_letters, rebuild
from ops.console import Progress
from ops.stream import jetstream

COPIES = 100
STATES = {
    "order_svc": "SELECT md5(string_agg(o::text, '' ORDER BY id)) FROM orders o WHERE id = ANY($1::uuid[])",
    "pay_svc": "SELECT md5(string_agg(p::text, '' ORDER BY id)) FROM payments p WHERE order_id = ANY($1::uuid[])",
    "reservation_svc": "SELECT md5(string_agg(r::text, '' ORDER BY order_id)) FROM reservations r "
    "WHERE order_id = ANY($1::uuid[])",
    "mypage_svc": "SELECT md5(string_agg(facts::text, '' ORDER BY order_id)) FROM mypages "
    "WHERE order_id = ANY($1::uuid[])",
    "sandbox": "SELECT md5(string_agg(l::text, '' ORDER BY key)) FROM ledger l WHERE order_id = ANY($1)",
}


@scenario(5, "every event delivered 100 times, shuffled: same state, same money, same messages")
async def hundredfold(rig: Rig) -> None:
    """Events that are missed and arrive in any order; then all of them again, after they were handled."""
    await _out_of_order(rig)
    await _once_more(rig)


async def _out_of_order(rig: Rig) -> None:
    """The events that order_svc and mypage_svc miss while they are down arrive shuffled, each a hundred times."""
    guest, desk = rig.caller("shuffled"), rig.caller("desk", role="desk")
    async with rig.nemesis.stopped("mypage_svc"):
        orders = paid(await asyncio.gather(*(guest.book(**a_stay(rig.chance)) for _ in range(8))))
        await rig.received(orders)
        async with rig.nemesis.stopped("order_svc"):
            acts = ("confirm", "confirm", "confirm", "confirm", "reject", "reject", "cancel", "cancel")
            await asyncio.gather(*(desk.decide(order, act) for order, act in zip(orders, acts, strict=True)))
            await asyncio.gather(*(desk.decide(order, "cancel") for order in orders[2:4]))
            await until(lambda: _all_published(rig, orders), "what the desk did is not announced")
            events = await _events_of(rig, orders)
            await _publish_shuffled(rig, events)
            async with jetstream(rig.stack) as js:
                for event in events:
                    await js.delete_msg(str(EVENTS.name), event.seq)
            rig.nemesis.note("shuffle", f"{len(events)} events × {COPIES}")
    async with under_watch(rig, guest, orders):
        for order in orders:
            # The load's desk may have been faster than this one, so the reservation's final state counts. A cancel
            # whose call failed is completed all the same.
            await until(lambda order=order: _is_decided(rig, order), f"the reservation of {order} is not decided")
            ends = await rig.sql("reservation_svc", STATUS, order)
            await until(lambda order=order, ends=ends: rig.order_is(order, ends), f"{order} is not {ends}")
            await until(lambda order=order: _page_is_complete(rig, order), f"My page of {order} is not complete")


STATUS = "SELECT status FROM reservations WHERE order_id = $1"


async def _is_decided(rig: Rig, order: str) -> bool:
    return bool(await rig.sql("reservation_svc", STATUS, order) != "RECEIVED")


async def _all_published(rig: Rig, orders: list[str]) -> bool:
    left = "SELECT count(*) FROM outbox WHERE aggregate_id = ANY($1) AND published_at IS NULL"
    return not any([await rig.sql(name, left, orders) for name in ("pay_svc", "reservation_svc")])


async def _page_is_complete(rig: Rig, order: str) -> bool:
    facts = "SELECT count(*) FROM mypages, jsonb_object_keys(facts) WHERE order_id = $1"
    return bool(await rig.sql("mypage_svc", facts, order) == sum(await _announced(rig, [order])))


async def _publish_shuffled(rig: Rig, events: list[Any]) -> int:
    """Publishes every event many times, in messages new to the stream; returns the last sequence number."""
    copies = [(event, copy) for event in events for copy in range(COPIES)]
    rig.chance.shuffle(copies)
    last = 0
    async with jetstream(rig.stack) as js:
        for part in range(0, len(copies), 200):
            acks = [
                await js.publish_async(
                    event.subject,
                    event.data,
                    headers={**event.headers, "Nats-Msg-Id": f"{event.headers['ce-id']}/{rig.seed}/{copy}"},
                )
                for event, copy in copies[part : part + 200]
            ]
            last = max(ack.seq for ack in await asyncio.gather(*acks))
    return last


async def _once_more(rig: Rig) -> None:
    """Orders in several states; the inbox knows every event that arrives."""
    guest, desk = rig.caller("victim"), rig.caller("desk", role="desk")
    orders = paid(await asyncio.gather(*(guest.book(**a_stay(rig.chance)) for _ in range(6))))
    await rig.received(orders)
    await asyncio.gather(*(desk.decide(orders[n], act) for n, act in enumerate(("confirm", "confirm", "reject"))))
    await asyncio.gather(*(guest.cancel(order_id) for order_id in orders[1:2] + orders[3:5]))
    await _quiet(rig, orders)
    events = await _events_of(rig, orders)
    announced = await _announced(rig, orders)
    if len(events) != sum(announced):
        raise NoHarmDone(f"{len(events)} of {sum(announced)} events were found to be sent again")
    before = {name: await rig.sql(name, statement, orders) for name, statement in STATES.items()}

    async with under_watch(rig, guest, orders), jetstream(rig.stack) as js:
        last = await _publish_shuffled(rig, events)
        rig.nemesis.note("redelivery", f"{len(events)} events × {COPIES}")
        for name in ("order_svc", "reservation_svc", "mypage_svc"):
            await until(lambda name=name: _has_handled(js, name, last), f"{name} does not catch up", seconds=90)
    rig.demand(await _announced(rig, orders) == announced, "something was announced again")
    after = {name: await rig.sql(name, statement, orders) for name, statement in STATES.items()}
    changed = [name for name in STATES if after[name] != before[name]]
    rig.demand(not changed, f"changed by events that came again: {changed}")


async def _events_of(rig: Rig, orders: list[str]) -> list[Any]:
    async with jetstream(rig.stack) as js:
        last = (await js.stream_info(str(EVENTS.name))).state.last_seq
        found = []
        for number in range(max(1, last - 3000), last + 1):
            with suppress(NotFoundError):  # it was removed
                message = await js.get_msg(str(EVENTS.name), number, direct=True)
                if (message.headers or {}).get("ce-subject") in orders:
                    found.append(message)
    return found


async def _announced(rig: Rig, orders: list[str]) -> list[int]:
    count = "SELECT count(*) FROM outbox WHERE aggregate_id = ANY($1)"
    return [await rig.sql(name, count, orders) for name in ("order_svc", "pay_svc", "reservation_svc")]


async def _has_handled(js: JetStreamContext, name: str, last: int) -> bool:
    """Whether a service has acknowledged everything up to a sequence number (or nothing is left for it)."""
    try:
        consumer = await js.consumer_info(str(EVENTS.name), name)
    except (TimeoutError, nats.errors.Error):
        return False
    return consumer.ack_floor.stream_seq >= last or not (consumer.num_pending or consumer.num_ack_pending)


@scenario(12, "a poison event goes to the dead letters, others go on; redriven after the fix it applies once")
async def poison(rig: Rig) -> None:
    """My page's database refuses one guest's rows: that is the bug, and dropping the constraint is the fix."""
    async with AsyncExitStack() as watching:
        await _poisoned(rig, watching)


async def _poisoned(rig: Rig, watching: AsyncExitStack) -> None:
    bad, good = rig.caller("poisoned"), rig.caller("healthy")
    rule = f"CHECK (owner <> '{bad.subject}') NOT VALID"
    await rig.sql("mypage_svc", f"ALTER TABLE mypages ADD CONSTRAINT poison {rule}")
    try:
        poisoned = (await bad.book(**a_stay(rig.chance))).order_id
        healthy = (await good.book(**a_stay(rig.chance))).order_id
        for guest, order_id in ((bad, poisoned), (good, healthy)):
            await watching.enter_async_context(under_watch(rig, guest, [order_id]))

        async def dead() -> list[dead_letters.DeadLetter]:
            return [letter for letter in await dead_letters.every(rig.stack) if letter.aggregate == poisoned]

        async def both_are_dead() -> bool:
            return len(await dead()) == 2

        await until(both_are_dead, "the poison does not reach the dead letters")
        await until(lambda: _page_has(good, healthy, 3), "others are held up by it")
        letters = await dead()
        rig.demand(all("CheckViolation" in letter.reason for letter in letters), "the reason is not kept")
        rig.nemesis.note("poison", poisoned)
    finally:
        await rig.sql("mypage_svc", "ALTER TABLE mypages DROP CONSTRAINT poison")
    for letter in letters:
        await dead_letters.redrive(rig.stack, letter.number)
    await until(lambda: _page_has(bad, poisoned, 3), "what was redriven does not apply")
    rig.demand(not await dead(), "a redriven letter is still there")


async def _page_has(guest: Caller, order_id: str, events: int) -> bool:
    page = await guest.look(f"/mypages/{order_id}", attempts=1)
    return len(page.answer.get("timeline") or []) == events


@scenario(13, "a consumer is killed between commit and ack: no second effect")
async def ack_lost(rig: Rig) -> None:
    """Data from reservation_svc to NATS is discarded, including its acknowledgements; then it is killed."""
    guest = rig.caller("victim")
    async with AsyncExitStack() as watching:
        for _ in range(6):
            async with rig.nemesis.cut("reservation_svc", "nats", back=False):
                orders = paid(await asyncio.gather(*(guest.book(**a_stay(rig.chance)) for _ in range(4))))
                await watching.enter_async_context(under_watch(rig, guest, orders[:3]))  # one guest has twenty at most
                handled = await _some_are_handled(rig, orders)
                if handled:
                    await rig.nemesis.kill("reservation_svc")
            await rig.received(orders)  # before another try its connection to NATS has to be whole again
            if handled:
                break
        else:
            raise NoHarmDone("nothing was handled while the acknowledgements were lost")
    rows = "SELECT count(*) FROM outbox WHERE aggregate_id = ANY($1) AND type LIKE '%ReservationTaken'"
    rig.demand(await rig.sql("reservation_svc", rows, orders) == len(orders), "a reservation was taken twice")


async def _some_are_handled(rig: Rig, orders: list[str]) -> bool:
    taken = "SELECT count(*) FROM reservations WHERE order_id = ANY($1::uuid[])"

    async def some() -> bool:
        return bool(await rig.sql("reservation_svc", taken, orders))

    try:
        await until(some, "none", seconds=2)
    except NotAsItMust:
        return False
    return True


@scenario(19, "My page is damaged and rebuilt under load: the old view serves until the new one is complete")
async def rebuilt(rig: Rig) -> None:
    """Half of one guest's pages are missing before the rebuild; the other half must never be."""
    guest = rig.caller("victim")
    orders = paid(await asyncio.gather(*(guest.book(**a_stay(rig.chance)) for _ in range(10))))
    for order_id in orders:
        await until(lambda order_id=order_id: _page_has(guest, order_id, 3), f"{order_id} has no page")
    async with under_watch(rig, guest, orders) as watchers:
        await until(lambda: all(watcher.pages for watcher in watchers), "a watch has no first page")
        await _rebuilt(rig, guest, orders[:5], orders[5:])
    for order_id in orders:
        rig.demand(await _page_has(guest, order_id, 3), f"the rebuilt page of {order_id} is not whole")


async def _rebuilt(rig: Rig, guest: Caller, lost: list[str], kept: list[str]) -> None:
    await rig.sql("mypage_svc", "DELETE FROM mypages WHERE order_id = ANY($1::uuid[])", lost)
    rig.nemesis.note("wipe", "mypage_svc")
    done = asyncio.Event()

    async def look() -> None:
        while not done.is_set():
            for order_id in kept:
                page = await guest.look(f"/mypages/{order_id}", attempts=1)
                rig.demand(page.outcome == OK, f"the page of {order_id} was not served: {page.status}")

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(look())
        await rebuild.rebuild(rig.stack, progress=Progress())
        done.set()


async def _quiet(rig: Rig, orders: list[str]) -> None:
    """Waits until no more events of these orders are published and My page has all of them."""
    names = "SELECT count(*) FROM orders WHERE id = ANY($1::uuid[]) AND status IN ('CANCELING', 'PAYMENT_PENDING')"

    async def complete() -> bool:
        if await rig.sql("order_svc", names, orders):
            return False
        facts = await rig.sql(
            "mypage_svc",
            "SELECT sum((SELECT count(*) FROM jsonb_object_keys(facts))) FROM mypages WHERE order_id = ANY($1::uuid[])",
            orders,
        )
        return bool(facts == sum(await _announced(rig, orders)))

    await until(complete, "the orders do not come to rest", seconds=60)
