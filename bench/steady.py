"""Full load for a long time, in ten parts: do rate and memory stay the same? `make bench STEADY=seconds`."""

import shutil
from datetime import UTC, datetime
from pathlib import Path

import uvloop

from bench import load, pgbench, usage
from ops import audit, console
from ops.errors import StackError
from ops.stack import Stack

PARTS = 10


def steady(*, seconds: int, clients: int) -> None:
    """Prints rate, latency, CPU and memory of each part. Raises StackError if an order was not paid, or the audit finds
    something.
    """
    home = Path(".run/steady")
    shutil.rmtree(home, ignore_errors=True)
    stack = Stack.on_free_ports(home)
    try:
        stack.up()
        load.open_room_type(stack.gateway_url, stack.token(subject="bench", role="desk"), pgbench.ROOM_TYPE)
        uvloop.run(in_parts(stack, seconds=seconds, clients=clients))
        found = {number: broken for number, broken in audit.check(stack).items() if broken}
    finally:
        stack.down()
    if found:
        raise StackError(f"the audit finds {found}")
    print("The audit holds.")


async def in_parts(stack: Stack, *, seconds: float, clients: int) -> None:
    """Loads a stack and prints a line for each part, with the memory between two parts. Returns when My page shows all.

    Raises StackError if an order was not paid, or a part had none.
    """
    pids = {name: pid for name, _, pid, _ in stack.status()}
    guests = [stack.token(subject=f"bench-{number}", role="guest") for number in range(clients)]
    gateway, began = stack.ports["gateway"], datetime.now(tz=UTC)
    await load.run(gateway, guests, pgbench.ROOM_TYPE, seconds=min(2.0, seconds))  # warm up
    await load.caught_up(stack, since=began)
    columns = ["orders/s", "p50", "p99", "CPU ms/order", *(f"{name} MB" for name in pids)]
    shown = console.table("until", *columns, right=tuple(columns))
    try:
        with console.progress(f"{seconds} s", PARTS) as advance:
            for part in range(1, PARTS + 1):
                before = usage.cpu_seconds(pids)
                outcome = await load.run(gateway, guests, pgbench.ROOM_TYPE, seconds=seconds / PARTS)
                used = sum(after - before[name] for name, after in usage.cpu_seconds(pids).items() if name != "bench")
                if outcome.others:
                    raise StackError(f"{len(outcome.others)} orders were not paid, for example: {outcome.others[0]}")
                if not outcome.latencies:
                    raise StackError("no order was placed: the parts are too short")
                memory = usage.memory_bytes(pids)
                shown.add_row(
                    f"{part * seconds / PARTS:g} s",
                    f"{outcome.rate:.0f}",
                    *(f"{outcome.percentile(percent):.0f} ms" for percent in (50, 99)),
                    f"{1000 * used / len(outcome.latencies):.2f}",
                    *(f"{memory[name] / 1e6:.0f}" for name in pids),
                )
                advance(1)
        await load.caught_up(stack, since=began)
    finally:
        console.show(shown)  # what was measured before a failure, too
