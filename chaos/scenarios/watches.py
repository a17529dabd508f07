"""Guests who watch their bookings while everything breaks."""

from chaos.load import a_stay
from chaos.nemesis import until
from chaos.rig import Rig
from chaos.scenario import scenario
from chaos.watcher import under_watch
from ops.configuration import PROCESSES


@scenario(28, "each process killed under guests who watch: all of them end with the true page, and none goes back")
async def watched(rig: Rig) -> None:
    """A booking changes after each kill. Watches that break connect again, as browsers do."""
    guest, desk = rig.caller("victim"), rig.caller("desk", role="desk")
    orders = [(await guest.book(**a_stay(rig.chance))).order_id for _ in PROCESSES]
    await rig.received(orders)
    async with under_watch(rig, guest, orders, each=2) as watchers:
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
    for watcher in watchers:
        rig.demand(watcher.connections > 2, "a watch did not break when mypage_svc and Envoy were killed")
        rig.demand(
            [entry["event"] for entry in watcher.pages[-1]["timeline"]].count("OrderCanceled") == 1,
            "a watch ends without the last change",
        )
