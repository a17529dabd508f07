"""Guests who watch their bookings while everything breaks."""

import asyncio
from itertools import pairwise

from chaos.load import a_stay
from chaos.nemesis import until
from chaos.rig import Rig
from chaos.scenario import scenario
from chaos.watcher import Watcher
from ops.configuration import PROCESSES


@scenario(28, "each process killed under guests who watch: all of them end with the true page, and none goes back")
async def watched(rig: Rig) -> None:
    """A booking changes after each kill. Watches that break connect again, as browsers do."""
    guest, desk = rig.caller("victim"), rig.caller("desk", role="desk")
    orders = [(await guest.book(**a_stay(rig.chance))).order_id for _ in PROCESSES]
    await rig.received(orders)
    watchers = [Watcher(rig.stack, guest, order_id) for order_id in orders for _ in range(2)]
    watching = [asyncio.create_task(watcher.run()) for watcher in watchers]
    try:
        await until(lambda: all(watcher.pages for watcher in watchers), "a watch has no first page")
        for name, order_id in zip(PROCESSES, orders, strict=True):
            await rig.nemesis.kill(name)
            await desk.decide(order_id, "confirm")
            await rig.works_again()
            await guest.cancel(order_id)
        for order_id in orders:
            await until(
                lambda order_id=order_id: rig.order_is(order_id, "CANCELED"), "a cancel does not end", seconds=60
            )

        async def all_true() -> bool:
            pages = {order_id: (await guest.look(f"/mypages/{order_id}")).answer for order_id in orders}
            return all(watcher.pages[-1] == pages[watcher.order_id] for watcher in watchers)

        await until(all_true, "a watch does not end with the true page", seconds=60)
    finally:
        for task in watching:
            task.cancel()
        await asyncio.wait(watching)
    for watcher in watchers:
        rig.demand(watcher.connections > 2, "a watch did not break when mypage_svc and Envoy were killed")
        for before, after in pairwise(watcher.pages):
            rig.demand(before["etag"] != after["etag"], "a watch repeated a page")
            rig.demand(len(before["timeline"]) <= len(after["timeline"]), "a watch went back")
        rig.demand(
            [entry["event"] for entry in watcher.pages[-1]["timeline"]].count("OrderCanceled") == 1,
            "a watch ends without the last change",
        )
