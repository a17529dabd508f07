"""The calls of an order alone: `make bench FLOOR=1`.

The hotel is loaded in turn with a copy whose order_svc and pay_svc only pass on the calls of an order, through the same
gateway and with the same certificates. As long as an order needs these calls, it can't cost less than in the copy.
"""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import uvloop

from bench.against import ROOT, Contestant, contest, report, running
from ops import console
from ops.errors import StackError
from ops.services import part
from ops.supervision import interrupt_nobody, wait_until

BARE = "bare calls"
REPLACED = ("order_svc", "pay_svc")  # in this order: no real order_svc ever calls a stand-in, which charges nothing
START_SECONDS, STOP_SECONDS = 30, 10


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
    log = stack.home / "log" / f"bare_{name}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "bench.bare", name], cwd=ROOT, env=environment, stdout=output, stderr=output
        )
    interrupt_nobody(process.pid)  # as what it stands in for

    def listens() -> bool:
        if process.poll() is not None:
            raise StackError(f"The stand-in for {name} has ended: see {log}.")
        with suppress(OSError), socket.create_connection(("127.0.0.1", stack.ports[part(name)]), timeout=1):
            return True
        return False

    try:
        wait_until(listens, f"The stand-in for {name} does not start: see {log}.", seconds=START_SECONDS)
        yield process
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        contestant.command("start", name)


def floor(*, rounds: int, seconds: int, clients: int) -> None:
    """Prints the CPU per order of each process, with the hotel and with the bare calls."""
    with (
        running("here", ROOT, Path(".run/here")) as here,
        running(BARE, ROOT, Path(".run/there")) as there,
        replaced(there) as bare,
        console.progress(f"{rounds} rounds", 2 * rounds) as advance,
    ):
        found = uvloop.run(contest([here, bare], rounds=rounds, seconds=seconds, clients=clients, advance=advance))
    report(found["here"], found[BARE], BARE)
    shown = console.table("CPU ms/order", "here", BARE, right=("here", BARE))
    for name in found["here"][0].cpu:
        costs = [median(each.cpu[name] for each in of_one) for of_one in found.values()]
        shown.add_row(name, *(f"{cost:.2f}" for cost in costs))
    shown.add_row("all but bench", *(f"{median(each.all_cpu for each in of_one):.2f}" for of_one in found.values()))
    console.show(shown)
