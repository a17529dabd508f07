"""What an order can't do without: `make bench ARGS=--floor`.

The hotel is loaded in turn with a copy whose order_svc and pay_svc only pass on the calls of an order, through the same
gateway and with the same certificates. Afterwards pgbench runs the statements of an order on the hotel's PostgreSQL.
No order can cost less than both together, as long as there are these two calls and these statements; what the events
cost comes on top.
"""

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from bench import pgbench, usage
from bench.against import ROOT, Contestant, contest, report, running
from ops import console
from ops.services import part
from ops.stack import Stack
from ops.supervision import wait_until

BARE = "bare calls"
REPLACED = ("pay_svc", "order_svc")
EVENTS = ("nats", "reservation_svc", "mypage_svc")  # what they do for an order is because of its events


@dataclass(frozen=True)
class BareCalls(Contestant):
    """A stack with stand-ins for order_svc and pay_svc."""

    stand_ins: "dict[str, subprocess.Popen[bytes]]" = field(default_factory=dict)

    def pids(self) -> dict[str, int]:
        """Its processes, with the stand-ins."""
        return {**super().pids(), **{name: process.pid for name, process in self.stand_ins.items()}}


@contextmanager
def replaced(contestant: Contestant) -> Iterator[BareCalls]:
    """Takes the place of order_svc and pay_svc, for the time of the block."""
    with ExitStack() as started:
        stand_ins = {name: started.enter_context(_stand_in(contestant, name)) for name in REPLACED}
        yield BareCalls(contestant.name, contestant.folder, contestant.stack, stand_ins)


@contextmanager
def _stand_in(contestant: Contestant, name: str) -> "Iterator[subprocess.Popen[bytes]]":
    contestant.command("stop", name)
    stack = contestant.stack
    environment = {**os.environ, **stack.service_environment(name)}
    with (stack.home / "log" / f"bare_{name}.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "bench.bare", name], cwd=ROOT, env=environment, stdout=log, stderr=log
        )
    try:
        port = stack.ports[part(name)]
        wait_until(lambda: _listens(port), f"the stand-in for {name} does not start", seconds=30)
        yield process
    finally:
        process.terminate()
        process.wait()
        contestant.command("start", name)


def _listens(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


async def statements_cost(stack: Stack, *, clients: int, seconds: int) -> float:
    """CPU milliseconds that PostgreSQL takes for the statements of one order."""
    pids = {name: pid for name, _, pid, _ in stack.status() if name == "postgres"}
    before = usage.cpu_seconds(pids)["postgres"]
    transactions = await pgbench.measure(stack, clients=clients, seconds=seconds)
    return 1000 * (usage.cpu_seconds(pids)["postgres"] - before) / (transactions * seconds)


def floor(*, rounds: int, seconds: int, clients: int) -> None:
    """Prints the hotel's CPU per order, that of the bare calls, and that of the statements.

    Few clients would be answered so fast that each reaches its limit of calls a second.
    """
    with (
        running("here", ROOT, Path(".run/here")) as here,
        running(BARE, ROOT, Path(".run/there")) as there,
        replaced(there) as bare,
        console.progress(f"{rounds} rounds", 2 * rounds) as advance,
    ):
        found = asyncio.run(contest([here, bare], rounds=rounds, seconds=seconds, clients=clients, advance=advance))
        statements = asyncio.run(statements_cost(here.stack, clients=clients, seconds=seconds))
    report(found["here"], found[BARE], BARE)
    cost = {
        who: {name: median(each.cpu[name] for each in rounds) for name in rounds[0].cpu if name != "bench"}
        for who, rounds in found.items()
    }
    shown = console.table("CPU ms/order", "here", BARE, "statements", right=("here", BARE, "statements"))
    for name, value in cost["here"].items():
        shown.add_row(
            name, f"{value:.2f}", f"{cost[BARE][name]:.2f}", f"{statements:.2f}" if name == "postgres" else ""
        )
    order, calls = sum(cost["here"].values()), sum(cost[BARE].values())
    shown.add_row("all", f"{order:.2f}", f"{calls:.2f}", f"{statements:.2f}")
    console.show(shown)
    events = sum(cost["here"][name] - cost[BARE][name] for name in EVENTS)
    print(f"calls and statements: {(calls + statements) / order:.2f} × an order")
    print(f"with what {', '.join(EVENTS)} do: {(calls + statements + events) / order:.2f} × an order")
