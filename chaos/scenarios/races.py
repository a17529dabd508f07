"""Rooms and races: many callers want the same thing at the same time."""

import asyncio
import json
import time
from collections import Counter
from itertools import pairwise

from chaos.load import GOOD, OK, REFUSED, ROOMS, UNKNOWN, a_stay, overlap
from chaos.nemesis import NoHarmDone, until
from chaos.rig import Rig, paid
from chaos.scenario import scenario


@scenario(6, "the last room, 500 orders at once: one holds it; overlapping stays get all nights or none")
async def last_room(rig: Rig) -> None:
    """Then thirty stays that overlap, for two rooms."""
    desk = rig.caller("desk", role="desk")
    last, two = f"Last{rig.seed}", f"Two{rig.seed}"
    await rig.open_room_type(desk, last, 1)
    await rig.open_room_type(desk, two, 2)
    stay = a_stay(rig.chance)
    guests = [rig.caller(f"rival-{number}") for number in range(500)]

    answers = await asyncio.gather(*(guest.book(roomType=last, **stay) for guest in guests))

    if any(overlap(one, other) for one, other in pairwise(answers)):
        rig.nemesis.note("race", "500 for one room")
    outcomes = Counter(answer.reason or answer.answer.get("status") for answer in answers)
    rig.demand(outcomes == {"PAID": 1, "SOLD_OUT": 499}, f"500 orders for one room were answered {dict(outcomes)}")
    charged = await rig.sql(
        "pay_svc", "SELECT count(*) FROM payments WHERE owner = ANY($1)", [g.subject for g in guests]
    )
    rig.demand(charged == 1, f"{charged} of 500 were charged")

    stays = [a_stay(rig.chance, few=True) for _ in range(30)]
    answers = await asyncio.gather(
        *(guest.book(roomType=two, **each) for guest, each in zip(guests, stays, strict=False))
    )
    rig.nemesis.note("race", "30 overlapping stays")
    rig.demand(all(answer.reason in ("", "SOLD_OUT") for answer in answers), "an overlapping stay failed otherwise")
    # A deadlock would be an error that a retry hides.
    rig.demand(UNKNOWN not in {answer.first_outcome for answer in answers}, "an overlapping stay failed at first")


@scenario(7, "the desk confirms and cancels at once: one wins")
async def desk_races(rig: Rig) -> None:
    """Twenty reservations, and twenty more with a reject beside."""
    guest = rig.caller("victim")
    desks = [rig.caller(f"desk-{number}", role="desk") for number in range(3)]
    for acts in (("confirm", "cancel"), ("confirm", "cancel", "reject")):
        orders = paid(await asyncio.gather(*(guest.book(**a_stay(rig.chance)) for _ in range(20))))
        await rig.received(orders)
        for order_id in orders:
            calls = [desk.decide(order_id, act, attempts=1) for desk, act in zip(desks, acts, strict=False)]
            answers = await asyncio.gather(*calls)
            if overlap(*answers) and any(answer.outcome == REFUSED for answer in answers):
                rig.nemesis.note("race", order_id)
            rig.demand(any(answer.outcome == OK for answer in answers), f"nobody won {order_id}")
            rig.demand(UNKNOWN not in {answer.outcome for answer in answers}, f"a call about {order_id} failed")
            # A cancel after a confirm is correct; both may then succeed.
            ends = [answer for answer in answers[1:] if answer.outcome == OK]
            rig.demand(len(ends) <= 1, f"{order_id} was both canceled and rejected")


@scenario(8, "the same request id 50 times in parallel: one order, equal answers; another body is refused")
async def same_request(rig: Rig) -> None:
    """Ten requests, each fifty times; then with another body, and from another guest."""
    guest, other = rig.caller("victim"), rig.caller("other")
    for number in range(10):
        body = {"name": f"same {number}", "roomType": ROOMS, "guestCnt": 1, "requestId": f"same-{number}"}
        body |= {**a_stay(rig.chance), "cardNo": GOOD}
        answers = await asyncio.gather(*(guest.call("look", "POST", "/orders", body) for _ in range(50)))
        if any(overlap(one, other) for one, other in pairwise(answers)):
            rig.nemesis.note("race", f"request {number} × 50")
        rig.demand({answer.outcome for answer in answers} == {OK}, "a repetition was not answered")
        rig.demand(len({json.dumps(answer.answer) for answer in answers}) == 1, "the answers differ")
        order_id = answers[0].order_id
        rig.demand(await rig.charges(order_id) == (1, 1), "not charged once")
        another = await guest.call("look", "POST", "/orders", {**body, "name": "another body"})
        rig.demand(another.reason == "REQUEST_ID_REUSED", f"another body was answered {another.status}")
        elsewhere = await other.call("look", "POST", "/orders", body)
        rig.demand(elsewhere.outcome == OK and elsewhere.order_id != order_id, "another guest's id collides")
    made = await rig.sql("order_svc", "SELECT count(*) FROM orders WHERE owner = $1", guest.subject)
    rig.demand(made == 10, f"ten requests made {made} orders")


TIME_IS_OVER = "UPDATE orders SET expires_at = now(), attempt_until = NULL WHERE id = ANY($1::uuid[])"


@scenario(18, "two expiry jobs; a payment in the second of the expiry: paid and live, or expired and net 0")
async def expiry(rig: Rig) -> None:
    """Repeats until payment and expiry have each won."""
    guest = rig.caller("victim")
    seen: set[str] = set()
    async with rig.replica("order_svc"):
        for _ in range(6):
            booked = await asyncio.gather(*(guest.book(None, **a_stay(rig.chance)) for _ in range(16)))
            orders = [each.order_id for each in booked]
            # The job runs every five seconds, in both: payments are spread around its next runs.
            await rig.sql("order_svc", TIME_IS_OVER, orders)
            moments = sorted(rig.chance.uniform(0, 5) for _ in orders)
            began = time.monotonic()
            payments = []
            for order_id, moment in zip(orders, moments, strict=True):
                await asyncio.sleep(max(0.0, began + moment - time.monotonic()))
                payments.append(asyncio.create_task(guest.pay(order_id)))
            await asyncio.gather(*payments)

            async def over(order_ids: list[str] = orders) -> bool:
                return "PAYMENT_PENDING" not in [await rig.order_status(each) for each in order_ids]

            # An attempt that began after its payment was closed is in flight for 15 s; then its order expires.
            await until(over, "orders are unpaid, and do not expire", seconds=40)
            for order_id in orders:
                status, (_, standing) = await rig.order_status(order_id), await rig.charges(order_id)
                seen.add(status)
                if status == "EXPIRED":
                    rig.demand(standing == 0, f"expired order {order_id} is charged")
                else:
                    rig.demand(standing == 1, f"{order_id} is {status}, {standing} stand")
            if {"EXPIRED", "PAID"} <= seen:
                rig.nemesis.note("race", "pay and expire")
                return
    raise NoHarmDone(f"only {seen} was seen")


@scenario(20, "a card number typed as the guest's name: 400, and the digits are nowhere")
async def card_as_name(rig: Rig) -> None:
    """In several spellings and fields. (The audit's A10 then searches everywhere.)"""
    guest = rig.caller("victim")
    for spelled in (
        "4242424242424242",
        "4242 4242 4242 4242",
        "Mr 4242-4242-4242-4242",
        "４２４２４２４２４２４２４２４２",
    ):
        for field in ("name", "phoneNo", "requestId", "roomType", "checkIn"):
            refused = await guest.call(
                "look", "POST", "/orders", {"name": "A", "roomType": ROOMS, "guestCnt": 1, field: spelled}
            )
            rig.demand(refused.status == 400, f"{field}={spelled!r} was answered {refused.status}")
            rig.demand("4242" not in json.dumps(refused.answer), f"the refusal of {field} repeats the digits")
            rig.nemesis.note("card number", field)
    rig.demand(not (await guest.look("/orders")).answer.get("orders"), "an order was taken")
