"""This code and another commit, loaded in turn in the same minutes: `make bench AGAINST=commit`.

A machine's speed varies from minute to minute, so only the ratios of neighbouring rounds say something.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from statistics import median

import uvloop

from bench import load, usage
from bench.plot import grouped_bars
from ops import console
from ops.errors import StackError
from ops.stack import Stack

ROOT = Path(__file__).parents[1]
ROOM_TYPE = "Bench"
CHART = Path(".run/against.svg")


@dataclass(frozen=True)
class Contestant:
    """The code in a folder with its own virtual environment, and a stack of it."""

    name: str
    folder: Path
    stack: Stack  # for other code, use only its folder and ports; its Stack may differ

    def command(self, *arguments: str) -> str:
        """Runs a command of the other code's command line; returns what it prints."""
        ports = {f"GOTOHOTEL_{name.upper()}_PORT": str(port) for name, port in self.stack.ports.items()}
        # The first release's gateway has one more.
        environment = {
            **os.environ, **ports, "GOTOHOTEL_HOME": str(self.stack.home),
            "GOTOHOTEL_ADMIN_PORT": str(self.stack.ports["kakao"]),
        }  # fmt: skip
        done = subprocess.run(
            [self.folder / ".venv/bin/gotohotel", *arguments],
            cwd=self.folder, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode != 0:
            raise StackError(f"{self.name}: gotohotel {arguments[0]} fails: {done.stderr.strip()}")
        return done.stdout.strip()

    def token(self, subject: str, role: str) -> str:
        """A token for its gateway."""
        if self.folder == ROOT:
            return self.stack.token(subject=subject, role=role)
        return self.command("token", "--role", role, "--sub", subject)

    def pids(self) -> dict[str, int]:
        """Its processes."""
        lines = (line.split() for line in self.command("status").splitlines())
        return {words[0]: int(words[2]) for words in lines if len(words) == 4 and words[2].isdecimal()}

    def open_room_type(self) -> None:
        """A room type with more rooms than can be sold."""
        load.open_room_type(f"http://127.0.0.1:{self.stack.ports['gateway']}", self.token("bench", "desk"), ROOM_TYPE)


@dataclass
class Round:
    """What one contestant did in one round."""

    rate: float  # paid orders a second
    p50: float  # milliseconds
    cpu: dict[str, float] = field(default_factory=dict)  # process → milliseconds an order

    @property
    def all_cpu(self) -> float:
        """CPU milliseconds an order, of all processes but the load generator."""
        return sum(value for name, value in self.cpu.items() if name != "bench")


def short_id(commit: str) -> str:
    """The short id of a commit; "" if there is none, or no git."""
    command = ["git", "rev-parse", "--short", "--verify", f"{commit}^{{commit}}"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return done.stdout.strip()


def check_out(commit: str) -> Path:
    """A folder with another commit and its virtual environment, kept for the next time."""
    if not (known := short_id(commit)):
        raise StackError(f"There is no commit {commit!r}.")
    folder = (Path(".run/commits") / known).resolve()
    if not (folder / ".venv/ready").exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        archive = subprocess.run(["git", "archive", folder.name], cwd=ROOT, capture_output=True, check=True)
        subprocess.run(["tar", "-x", "-C", str(folder)], input=archive.stdout, check=True)
        subprocess.run(["make", ".venv/ready", f"PYTHON={sys.executable}"], cwd=folder, check=True)
    return folder


@contextmanager
def running(name: str, folder: Path, home: Path) -> Iterator[Contestant]:
    """A stack of the code in a folder."""
    shutil.rmtree(home, ignore_errors=True)
    contestant = Contestant(name, folder, Stack.on_free_ports(home))
    try:
        contestant.command("up")
        contestant.open_room_type()
        yield contestant
    finally:
        contestant.command("down")
        shutil.rmtree(home, ignore_errors=True)


async def contest(
    contestants: Sequence[Contestant], *, rounds: int, seconds: float, clients: int, advance: Callable[[int], None]
) -> dict[str, list[Round]]:
    """Loads the contestants in turn; each round begins with another one."""
    tokens = {each.name: load.guests_of(clients, partial(each.token, role="guest")) for each in contestants}
    pids = {each.name: each.pids() for each in contestants}
    found: dict[str, list[Round]] = {each.name: [] for each in contestants}
    for number in range(rounds + 1):
        for each in contestants if number % 2 else reversed(contestants):
            warms_up = number == 0
            outcome, cpu = await _load(
                each, tokens[each.name], pids[each.name], min(2.0, seconds) if warms_up else seconds
            )
            if not warms_up:
                per_order = {name: 1000 * used / len(outcome.latencies) for name, used in cpu.items()}
                found[each.name].append(Round(outcome.rate, outcome.percentile(50), per_order))
                advance(1)
    return found


async def _load(
    contestant: Contestant, guests: Sequence[Sequence[str]], pids: Mapping[str, int], seconds: float
) -> tuple[load.Outcome, dict[str, float]]:
    before, began = usage.cpu_seconds(pids), datetime.now(tz=UTC)
    outcome = await load.run(contestant.stack.ports["gateway"], guests, ROOM_TYPE, seconds=seconds)
    if not outcome.latencies:
        raise StackError(f"{contestant.name}: no order was paid: {outcome.others[:1]}")
    await load.caught_up(contestant.stack, since=began)  # the CPU of its last events is its own
    return outcome, {name: after - before[name] for name, after in usage.cpu_seconds(pids).items()}


def against(commit: str, *, rounds: int, seconds: float, clients: int) -> None:
    """Compares this code with another commit, and prints both, the ratios of each round, and a chart."""
    folder = check_out(commit)
    with (
        running("here", ROOT, Path(".run/here")) as here,
        running(folder.name, folder, Path(".run/there")) as there,
        console.progress(f"{rounds} rounds", 2 * rounds) as advance,
    ):
        found = uvloop.run(contest([here, there], rounds=rounds, seconds=seconds, clients=clients, advance=advance))
    report(found["here"], found[there.name], there.name)


def report(ours: Sequence[Round], theirs: Sequence[Round], name: str) -> None:
    """Prints the rounds and their ratios, and draws the CPU of each process."""
    shown = console.table(
        "round", "orders/s", name, "ratio", "CPU ms/order", f" {name}", "ratio ", "p50 ms", f"  {name}",
        right=("orders/s", name, "ratio", "CPU ms/order", f" {name}", "ratio ", "p50 ms", f"  {name}"),
    )  # fmt: skip
    rates, costs = [], []
    for number, (our, their) in enumerate(zip(ours, theirs, strict=True), start=1):
        rates.append(our.rate / their.rate)
        costs.append(our.all_cpu / their.all_cpu)
        shown.add_row(
            str(number),
            *(f"{our.rate:.0f}", f"{their.rate:.0f}", f"{rates[-1]:.2f}"),
            *(f"{our.all_cpu:.2f}", f"{their.all_cpu:.2f}", f"{costs[-1]:.2f}"),
            *(f"{our.p50:.0f}", f"{their.p50:.0f}"),
        )
    console.show(shown)
    for what, ratios in (("orders/s", rates), ("CPU per order", costs)):
        print(f"{what}: median {median(ratios):.2f} × {name}, from {min(ratios):.2f} to {max(ratios):.2f}")
    names = [each for each in ours[0].cpu if each in theirs[0].cpu]
    bars = {
        who: [median(each.cpu[process] for each in rounds) for process in names]
        for who, rounds in (("here", ours), (name, theirs))
    }
    CHART.write_text(grouped_bars("CPU per order (ms)", names, bars))
    print(f"CPU per order by process: {CHART}")
