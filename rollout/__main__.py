"""Replaces every replica of every part by the next release's, while guests book: `make rollout`.

Two replicas of each service and of the gateway run. A hundred guests book and look up their orders, without retrying.
Meanwhile all parts are updated at once, as `helm upgrade` does it: a new replica is ready before an old one is told to
end, and it serves on for as long as the chart says. Both releases run side by side on one database and one stream.

The next release is a copy of this code with one more field, event, subscription and migration (chaos/next_release.py).
It replaces an older commit of git (`--from`), or, where git has no history, this code. A commit before the chart has no
probes and looks up no names: its replicas are ready when they listen, their calls to pay_svc go through the first
gateway, and the gateways are replaced after the services. Every gateway has this code's configuration.
"""

import asyncio
import json
import random
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from bench.against import Contestant, check_out, short_id
from bench.fleet import GATEWAY, HERE, Ending, Fleet, Release
from bench.load import open_room_type, read_head, request_of
from bench.plot import stacked_bars
from chaos.next_release import migrate, next_release
from helm.rendering import render
from ops import audit, console
from ops.errors import StackError
from ops.services import SERVICES, part
from ops.stack import Stack

ROOM_TYPE = "Rollout"
BEFORE_THE_CHART = "4d6ff36"
BOOKED, SEEN, FAILED = "booked", "looked up", "failed"
ORIGINAL_RATE = 116.74  # calls a second, and 100 %: the original's own measurement of its readiness probe


@dataclass(frozen=True, slots=True)
class Call:
    """One call and what became of it. Times in seconds since the start."""

    began: float
    ended: float
    outcome: str


class Guests:
    """Guests who book and look up their orders until they are told to stop."""

    def __init__(self, stack: Stack, fleet: Fleet) -> None:
        self._stack = stack
        self._fleet = fleet
        self._port = stack.ports["gateway"]
        self.calls: list[Call] = []
        self.failures: list[str] = []
        self.started = time.perf_counter()

    async def run(self, users: int, until: asyncio.Event) -> None:
        """All guests."""
        async with asyncio.TaskGroup() as tasks:
            for number in range(users):
                tasks.create_task(self._guest(self._stack.token(subject=f"rollout-{number}", role="guest"), until))

    async def _guest(self, token: str, until: asyncio.Event) -> None:
        connection: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        order_id = ""
        while not until.is_set():
            if connection is None:
                # As a Service does it: a new connection goes to any gateway that is ready.
                connection = await asyncio.open_connection(random.choice(self._fleet.gateways), self._port)
            request = self._look_up(token, order_id) if order_id else request_of(self._port, token, ROOM_TYPE)
            began = time.perf_counter() - self.started
            head, body = b"", b""
            with suppress(OSError):
                connection[1].write(request)
                head, body = await read_head(connection[0])
            good = b" 200 " in head.split(b"\r\n", 1)[0]
            order = json.loads(body) if good else {}
            outcome = FAILED if order.get("status") != "PAID" else SEEN if order_id else BOOKED
            if outcome == FAILED:
                self.failures.append(f"at {began:.1f} s: {head[:40]!r} {body[:200]!r}")
            self.calls.append(Call(began, time.perf_counter() - self.started, outcome))
            order_id = order.get("id", "") if outcome == BOOKED else ""
            if not head or b"connection: close" in head:
                connection[1].close()
                connection = None
        if connection is not None:
            connection[1].close()

    def _look_up(self, token: str, order_id: str) -> bytes:
        return (
            f"GET /orders/{order_id} HTTP/1.1\r\nHost: 127.0.0.1:{self._port}\r\nAuthorization: Bearer {token}\r\n\r\n"
        ).encode()


def endings() -> dict[str, Ending]:
    """How the chart ends the pods of each part."""
    rendered = render({})
    found = {}
    for component in (*map(part, SERVICES), GATEWAY):
        spec = rendered.named("Deployment", component)["spec"]["template"]["spec"]
        command = spec["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
        found[component] = Ending(float(command[-1]), float(spec["terminationGracePeriodSeconds"]))
    return found


@contextmanager
def releases(commit: str) -> Iterator[tuple[Release, Release]]:
    """The one that runs, and the one that replaces it. Raises StackError if there is no such commit."""
    running = HERE
    if commit and (commit != BEFORE_THE_CHART or short_id(commit)):
        folder = check_out(commit)
        has_probes = (folder / "gotohotel" / "rpc" / "health.py").exists()
        running = Release(folder, str(folder / ".venv/bin/python"), has_probes=has_probes)
    print(f"{'this code' if running is HERE else running.folder.name} is replaced by the next release", flush=True)
    with next_release() as code:
        yield running, Release(code)


def main(
    commit: Annotated[str, typer.Option("--from", help='What is replaced; "": this code.')] = BEFORE_THE_CHART,
    users: Annotated[int, typer.Option(min=1, help="Guests at a time.")] = 100,
    seconds: Annotated[int, typer.Option(min=1, help="Of load, at least: it goes on until all are replaced.")] = 60,
    plot: Annotated[Path, typer.Option(help="Where the plot is written.")] = Path(".run/rollout.svg"),
) -> None:
    """Updates everything under load, and checks that no call fails and no booking is wrong."""
    home = Path(".run/rollout")
    shutil.rmtree(home, ignore_errors=True)
    stack = Stack.on_free_ports(home)
    try:
        with releases(commit) as (running, following):
            Contestant("rollout", running.folder, stack).command("up")
            open_room_type(stack.gateway_url, stack.token(subject="rollout", role="desk"), ROOM_TYPE)
            with Fleet(stack, replicas=2, release=running) as fleet:
                guests = Guests(stack, fleet)
                replaced = asyncio.run(_roll(guests, fleet, following, users=users, seconds=seconds))
                old = [each for each in fleet.replicas if each.process.poll() is None and each.leaving]
        stack.down()
        stack.up()  # with this code, as after a rollback; the audit waits until everything is delivered
        found = {number: broken for number, broken in audit.check(stack).items() if broken}
    except StackError as error:
        sys.exit(f"rollout: {error}")
    finally:
        stack.down()
    _report(guests, replaced, found, plot)
    sys.exit(0 if not guests.failures and not found and not old else 1)


async def _roll(guests: Guests, fleet: Fleet, following: Release, *, users: int, seconds: int) -> float:
    """Loads, and updates from a third of the time on. Returns how long the update took, in seconds."""
    until, how = asyncio.Event(), endings()
    load = asyncio.create_task(guests.run(users, until))
    await asyncio.sleep(seconds / 6)
    begun = time.perf_counter()
    await asyncio.to_thread(migrate, following.folder, fleet.home)

    def update() -> None:
        services = [component for component in how if component != GATEWAY]
        waves = [[*services, GATEWAY]] if fleet.finds_gateways_by_name else [services, [GATEWAY]]
        for components in waves:
            with ThreadPoolExecutor() as pool:
                done = [pool.submit(fleet.replace, component, following, how[component]) for component in components]
                for each in done:
                    each.result()

    try:
        await asyncio.to_thread(update)
        took = time.perf_counter() - begun
        await asyncio.sleep(max(seconds / 6, seconds - (time.perf_counter() - guests.started)))
    finally:
        until.set()
        await load
    return took


def _report(guests: Guests, replaced: float, found: dict[str, list[str]], plot: Path) -> None:
    calls = guests.calls
    outcomes = Counter(call.outcome for call in calls)
    seconds = max(call.ended for call in calls)
    latencies = sorted(call.ended - call.began for call in calls)
    available = 100 * (1 - outcomes[FAILED] / len(calls))
    shown = console.table("", "here", "the original", right=("here", "the original"))
    shown.add_row("calls that were answered", f"{available:.2f} %", "100.00 %")
    shown.add_row("calls a second", f"{len(calls) / seconds:.2f}", f"{ORIGINAL_RATE}")
    shown.add_row("p50", f"{latencies[len(latencies) // 2]:.3f} s", "")
    shown.add_row("p99", f"{latencies[int(len(latencies) * 0.99)]:.3f} s", "")
    shown.add_row("longest", f"{latencies[-1]:.3f} s", "")
    for outcome in (BOOKED, SEEN, FAILED):
        shown.add_row(outcome, f"{outcomes[outcome]}", "")
    shown.add_row("all replaced after", f"{replaced:.0f} s", "")
    shown.add_row("the audit", "holds" if not found else f"violated: {found}", "")
    console.show(shown)
    for failure in guests.failures[:5]:
        print(f"failed: {failure}")
    plot.parent.mkdir(parents=True, exist_ok=True)
    plot.write_text(_plot(calls, int(seconds) + 1))
    print(f"The plot is {plot}.")


def _plot(calls: Sequence[Call], seconds: int) -> str:
    series = {outcome: [0] * seconds for outcome in (BOOKED, SEEN, FAILED)}
    for call in calls:
        series[call.outcome][int(call.ended)] += 1
    return stacked_bars("Calls in each second, while everything is replaced", series, unit="s")


if __name__ == "__main__":
    typer.run(main)
