"""Full load for a long time, in ten parts: do rate and memory stay the same? `make bench STEADY=seconds`."""

from pathlib import Path

import uvloop

from bench import load, usage
from bench.against import ROOM_TYPE, ROOT, running
from ops import audit, console
from ops.errors import StackError
from ops.stack import Stack

PARTS = 10


def steady(*, seconds: int, clients: int) -> None:
    """Prints rate, latency, CPU and memory of each part. Raises StackError if an order was not paid, or the audit finds
    something.
    """
    with running("here", ROOT, Path(".run/steady")) as here:
        uvloop.run(in_parts(here.stack, seconds=seconds, clients=clients))
        found = {number: broken for number, broken in audit.check(here.stack).items() if broken}
    if found:
        raise StackError(f"the audit finds {found}")
    print("The audit holds.")


async def in_parts(stack: Stack, *, seconds: float, clients: int) -> None:
    """Loads a stack and prints a line for each part, with the memory at its end. What was measured before a failure is
    printed, too.

    Raises StackError if an order was not paid, or none was placed in a part.
    """
    pids = {name: pid for name, _, pid, _ in stack.status()}
    guests = load.guests_of(clients, lambda subject: stack.token(subject=subject, role="guest"))
    gateway = stack.ports["gateway"]
    await load.run(gateway, guests, ROOM_TYPE, seconds=min(2.0, seconds))  # warm up
    columns = ["orders/s", "p50", "p99", "CPU ms/order", *(f"{name} MB" for name in pids)]
    shown = console.table("until", *columns, right=tuple(columns))
    try:
        with console.progress(f"{seconds} s", PARTS) as advance:
            for part in range(1, PARTS + 1):
                before = usage.cpu_seconds(pids)
                outcome = await load.run(gateway, guests, ROOM_TYPE, seconds=seconds / PARTS)
                after = usage.cpu_seconds(pids)
                if outcome.others:
                    raise StackError(f"{len(outcome.others)} orders were not paid, for example: {outcome.others[0]}")
                if not outcome.latencies:
                    raise StackError("no order was placed: the parts are too short")
                memory = usage.memory_bytes(pids)
                shown.add_row(
                    f"{part * seconds / PARTS:g} s",
                    f"{outcome.rate:.0f}",
                    *(f"{outcome.percentile(percent):.0f} ms" for percent in (50, 99)),
                    f"{1000 * sum(after[name] - before[name] for name in pids) / len(outcome.latencies):.2f}",
                    *(f"{memory[name] / 1e6:.0f}" for name in pids),
                )
                advance(1)
    finally:
        console.show(shown)
