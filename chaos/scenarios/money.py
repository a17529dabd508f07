"""Money: charged once and refunded in full, whatever is lost on the way."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from chaos.load import ERROR, LOST_ANSWER, OK, UNKNOWN, a_stay, overlap
from chaos.nemesis import NoHarmDone, until
from chaos.rig import Rig, paid
from chaos.scenario import scenario

HOLD_THE_RESULT = """
CREATE FUNCTION hold_the_result() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN PERFORM pg_advisory_xact_lock_shared(4711); RETURN NEW; END $$;
CREATE TRIGGER hold_the_result BEFORE UPDATE ON payments
    FOR EACH ROW WHEN (NEW.owner = '{owner}') EXECUTE FUNCTION hold_the_result();
"""
LET_THE_RESULT_GO = "DROP FUNCTION hold_the_result CASCADE"
CHARGED_WITHOUT_A_RESULT = "SELECT order_id::text FROM payments WHERE owner = $1 AND status = 'PENDING'"


@scenario(1, "pay_svc is killed after the processor said yes: one charge, PAID")
async def reply_lost(rig: Rig) -> None:
    """The result can't be stored while the lock is held: pay_svc is killed then."""
    guest = rig.caller("victim")
    stay = a_stay(rig.chance)
    async with AsyncExitStack() as held:
        holder = await held.enter_async_context(rig.session("pay_svc"))
        await holder.execute(HOLD_THE_RESULT.format(owner=guest.subject))
        held.push_async_callback(holder.execute, LET_THE_RESULT_GO)
        await holder.execute("SELECT pg_advisory_lock(4711)")
        booking = asyncio.create_task(guest.book(**stay))

        async def charged() -> bool:
            order_id = await rig.sql("pay_svc", CHARGED_WITHOUT_A_RESULT, guest.subject)
            return bool(order_id and (await rig.charges(order_id))[0])

        await until(charged, "the processor was not asked", error=NoHarmDone)
        await rig.nemesis.kill("pay_svc")
        order_id = (await booking).order_id
        rig.demand(await rig.charges(order_id) == (1, 1), "the processor did not say yes before the kill")
    await until(lambda: rig.order_is(order_id, "PAID"), f"order {order_id} does not become PAID", seconds=60)
    rig.demand(await rig.charges(order_id) == (1, 1), "charged more than once")


# Questions about a charge wait; the charges themselves are made.
HOLD_THE_TRUTH = """
CREATE FUNCTION hold_the_truth() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN PERFORM pg_advisory_xact_lock_shared(4712); RETURN NEW; END $$;
CREATE TRIGGER hold_the_truth BEFORE INSERT ON entries
    FOR EACH ROW WHEN (NEW.reason = 'PAYMENT_UNAVAILABLE') EXECUTE FUNCTION hold_the_truth();
"""
LET_THE_TRUTH_GO = "DROP FUNCTION hold_the_truth CASCADE"


@asynccontextmanager
async def silent_processor(rig: Rig) -> AsyncIterator[None]:
    """Nobody can ask the processor for the outcome of a charge; the card decides whether it is made and answered."""
    began = time.monotonic()
    async with AsyncExitStack() as held:
        holder = await held.enter_async_context(rig.session("sandbox"))
        await holder.execute(HOLD_THE_TRUTH)
        held.push_async_callback(holder.execute, LET_THE_TRUTH_GO)
        await holder.execute("SELECT pg_advisory_lock(4712)")
        yield
        await holder.execute("SELECT pg_advisory_unlock(4712)")
    rig.nemesis.note("silence", "processor", began=began)


@scenario(2, "the processor times out, truth unknown: no second charge, settled soon, canceled ones at net 0")
async def processor_silent(rig: Rig) -> None:
    """Half of the charges are made, half are not; the answers are lost, and the processor can't be asked."""
    guest = rig.caller("victim")
    async with silent_processor(rig):
        cards = [LOST_ANSWER, ERROR] * 4
        booked = await asyncio.gather(*(guest.book(card, **a_stay(rig.chance)) for card in cards))
        again = await asyncio.gather(*(guest.pay(each.order_id) for each in booked[:4]))
        canceled = await asyncio.gather(*(guest.cancel(each.order_id) for each in booked[4:]))
        charged = [await rig.charges(each.order_id) for each in booked]
    if charged != [(1, 1), (0, 0)] * 4:
        raise NoHarmDone(f"not every second charge was made: {charged}")
    if any(each.is_paid for each in booked):
        raise NoHarmDone("the processor was heard all the same")
    rig.demand(not any(each.is_paid for each in again), "paid although the processor was silent")
    rig.demand(all(each.outcome == OK for each in canceled), "a cancel was not taken")

    async def settled() -> bool:
        count = "SELECT count(*) FROM payments WHERE owner = $1 AND status = 'PENDING'"
        return not await rig.sql("pay_svc", count, guest.subject)

    await until(settled, "payments are unsettled after a minute", seconds=60)
    for each, made in zip(booked, charged, strict=True):
        ends = "CANCELED" if each in booked[4:] else "PAID" if made == (1, 1) else "PAYMENT_PENDING"
        await until(lambda each=each, ends=ends: rig.order_is(each.order_id, ends), f"{each.order_id} is not {ends}")
        standing = 1 if ends == "PAID" else 0
        rig.demand(await rig.charges(each.order_id) == (made[0], standing), f"{each.order_id}, {ends}, is not settled")


@scenario(3, "a cancel arrives before PaymentApproved: stays canceled, refunded once")
async def cancel_first(rig: Rig) -> None:
    """pay_svc can't publish while the guest cancels."""
    guest = rig.caller("victim")
    async with rig.nemesis.cut("pay_svc", "nats"):
        booked = await asyncio.gather(*(guest.book(**a_stay(rig.chance)) for _ in range(5)))
        orders = paid(booked)
        rig.demand(len(orders) == 5, "not all five were paid")
        await asyncio.gather(*(guest.cancel(order_id) for order_id in orders))
        ended = "SELECT count(*) FROM reservations WHERE order_id = ANY($1::uuid[]) AND ended_at IS NOT NULL"

        async def all_ended() -> bool:
            return bool(await rig.sql("reservation_svc", ended, orders) == 5)

        await until(all_ended, "the cancels do not reach the desk")
        unsent = (
            "SELECT count(*) FROM outbox WHERE aggregate_id = ANY($1) AND published_at IS NULL "
            "AND type LIKE '%PaymentApproved'"
        )
        if not await rig.sql("pay_svc", unsent, orders):
            raise NoHarmDone("PaymentApproved was faster")
    for order_id in orders:
        await until(lambda order_id=order_id: rig.order_is(order_id, "CANCELED"), f"{order_id} is not canceled")
        rig.demand(await rig.charges(order_id) == (1, 0), f"{order_id} was not refunded once")
    taken = "SELECT count(*) FROM outbox WHERE aggregate_id = ANY($1) AND type LIKE '%ReservationTaken'"
    rig.demand(not await rig.sql("reservation_svc", taken, orders), "a canceled booking was taken")


@scenario(4, "cancel and approve at once: one wins, money matches the state")
async def cancel_and_approve(rig: Rig) -> None:
    """Forty pairs."""
    guest = rig.caller("victim")
    orders = [(await guest.book(None, **a_stay(rig.chance))).order_id for _ in range(40)]
    for order_id in orders:
        calls = [guest.pay(order_id), guest.cancel(order_id)]
        rig.chance.shuffle(calls)
        payment, cancel = sorted(await asyncio.gather(*calls), key=lambda call: call.kind, reverse=True)
        rig.demand(UNKNOWN not in (payment.outcome, cancel.outcome), "a call of the pair failed")
        if overlap(payment, cancel):
            rig.nemesis.note("race", order_id)
    await asyncio.gather(*(guest.cancel(order_id) for order_id in orders))
    for order_id in orders:
        await until(lambda order_id=order_id: rig.order_is(order_id, "CANCELED"), f"{order_id} is not canceled")
        made, standing = await rig.charges(order_id)
        rig.demand(made <= 1 and standing == 0, f"{order_id} has {made} charges, {standing} stand")
