"""Several replicas of each service and of the gateway, against one of each: `make bench REPLICAS=2`.

On one machine they share its cores. What this shows is that everything stays right with several (the audit), and what
they cost; it says nothing about several machines.
"""

import shutil
from pathlib import Path

import uvloop

from bench import load, pgbench, usage
from bench.fleet import HERE, Fleet
from ops import audit, console
from ops.errors import StackError
from ops.stack import Stack


def against_one(replicas: int, *, seconds: int, clients: int) -> None:
    """Prints the figures. Raises StackError if the audit finds something."""
    shown = console.table("replicas of each", "orders/s", "p50", "p99", "CPU ms/order", "the audit")
    for count in (1, replicas):
        home = Path(".run/replicas")
        shutil.rmtree(home, ignore_errors=True)
        stack = Stack.on_free_ports(home)
        try:
            stack.up()
            load.open_room_type(stack.gateway_url, stack.token(subject="bench", role="desk"), pgbench.ROOM_TYPE)
            outcome, used = _load(stack, count, seconds=seconds, clients=clients)
            stack.up()  # what is not delivered yet is, while the audit waits
            found = {number: broken for number, broken in audit.check(stack).items() if broken}
        finally:
            stack.down()
        if outcome.others:
            raise StackError(f"{len(outcome.others)} orders were not paid, for example: {outcome.others[0]}")
        if found:
            raise StackError(f"the audit finds {found}")
        times = [f"{outcome.percentile(percent):.0f} ms" for percent in (50, 99)]
        shown.add_row(f"{count}", f"{outcome.rate:.0f}", *times, f"{1000 * used / len(outcome.latencies):.2f}", "holds")
    console.show(shown)


def _load(stack: Stack, count: int, *, seconds: int, clients: int) -> tuple[load.Outcome, float]:
    """The load's outcome, and the CPU seconds of all processes but the load's own."""
    guests = load.guests_of(clients, lambda subject: stack.token(subject=subject, role="guest"))
    with Fleet(stack, replicas=count, release=HERE) as fleet:
        pids = {name: pid for name, _, pid, _ in stack.status() if pid}
        pids |= {each.address: each.process.pid for each in fleet.replicas}
        port, room_type = stack.ports["gateway"], pgbench.ROOM_TYPE
        uvloop.run(load.run(port, guests, room_type, seconds=2, hosts=fleet.gateways))  # warm up
        before = usage.cpu_seconds(pids)
        outcome = uvloop.run(load.run(port, guests, room_type, seconds=seconds, hosts=fleet.gateways))
        uvloop.run(load.caught_up(stack))
        after = usage.cpu_seconds(pids)
    return outcome, sum(after[name] - before[name] for name in pids)
