"""Five times what the hotel can take: `make overload`.

First the sustainable rate: guests book as fast as the answers come. Then orders arrive at five times that rate,
whether answers come or not. What is accepted must be fast, what is refused must be refused at once, and afterwards
everything must be as before.

The gateway and the guests come first: what is behind the gateway runs under `nice -n 10`. Otherwise refused guests wait
for a turn of the gateway or of this program, if all share a few cores.
"""

import asyncio
import json
import os
import shutil
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import httpx
import psutil
import typer
import uvloop

from bench import load, usage
from ops import audit, console
from ops.errors import StackError
from ops.stack import Stack

ROOM_TYPE = "Bench"
TIMES = 5
GUESTS = 1000
CONNECTIONS = 2000
NICE = 10
GOODPUT, SERVED_SECONDS, REFUSED_SECONDS, RECOVERY_SECONDS = 0.8, 1.0, 0.05, 10.0  # the targets


@dataclass(frozen=True, slots=True)
class Answer:
    """One call: how long it took in seconds since it was due, its status (0: none), and whether it says how long to
    wait.
    """

    seconds: float
    status: int
    says_when: bool


def main(
    seconds: Annotated[int, typer.Option(min=1, help="Of overload.")] = 60,
    warm_up: Annotated[int, typer.Option(min=1, help="Seconds in which the sustainable rate is measured.")] = 20,
) -> None:
    """Orders arrive at five times the sustainable rate; the report says what became of them."""
    home = Path(".run/overload")
    shutil.rmtree(home, ignore_errors=True)
    stack = Stack.on_free_ports(home)
    try:
        stack.up()
        _let_the_gateway_go_first(stack)
        holds = uvloop.run(_overload(stack, seconds=seconds, warm_up=warm_up))
    except StackError as error:
        sys.exit(f"overload: {error}")
    finally:
        stack.down()
    sys.exit(0 if holds else 1)


def _let_the_gateway_go_first(stack: Stack) -> None:
    for name, _, pid, _ in stack.status():
        for process in usage.family(pid) if name != "envoy" else ():
            with suppress(psutil.Error, ProcessLookupError):  # it has just ended, as sessions of PostgreSQL do
                for thread in process.threads():
                    os.setpriority(os.PRIO_PROCESS, thread.id, NICE)


async def _overload(stack: Stack, *, seconds: int, warm_up: int) -> bool:
    load.open_room_type(stack.gateway_url, stack.token(subject="bench", role="desk"), ROOM_TYPE)
    guests = [stack.token(subject=f"overload-{number}", role="guest") for number in range(GUESTS)]
    few = [[guest] for guest in guests[:32]]
    gateway = stack.ports["gateway"]
    await load.run(gateway, few, ROOM_TYPE, seconds=2)
    sustainable = (await load.run(gateway, few, ROOM_TYPE, seconds=warm_up)).rate
    answers, took = await _arrive(gateway, guests, rate=TIMES * sustainable, seconds=seconds)
    recovered = await _recovered(gateway, guests)
    found = {number: broken for number, broken in (await asyncio.to_thread(audit.check, stack)).items() if broken}

    served = sorted(each.seconds for each in answers if each.status == httpx.codes.OK)
    refused = sorted(each.seconds for each in answers if each.status in (429, 503))
    lost = len(answers) - len(served) - len(refused)
    goodput = len(served) / took / sustainable
    silent = sum(1 for each in answers if each.status in (429, 503) and not each.says_when)
    checks = {
        f"goodput, of {sustainable:.0f} orders/s": (f"{100 * goodput:.0f} %", goodput >= GOODPUT, "≥ 80 %"),
        "served, p99": (f"{_p99(served):.3f} s", _p99(served) < SERVED_SECONDS, "< 1 s"),
        "refused, p99": (f"{1000 * _p99(refused):.0f} ms", _p99(refused) < REFUSED_SECONDS, "< 50 ms"),
        "refused without Retry-After": (f"{silent}", not silent, "0"),
        "answered otherwise, or not at all": (f"{lost}", not lost, "0"),
        "normal again after": (f"{recovered:.1f} s", recovered <= RECOVERY_SECONDS, "≤ 10 s"),
        "the audit": ("holds" if not found else f"violated: {found}", not found, "holds"),
    }
    rate = len(answers) / took
    print(f"{len(answers)} orders arrived, {rate:.0f}/s: {len(served)} were served, {len(refused)} refused.")
    report = console.table("", "measured", "target", "", right=("measured", "target"))
    for name, (measured, holds, target) in checks.items():
        report.add_row(name, measured, target, "" if holds else "MISSED")
    console.show(report)
    return all(holds for _, holds, _ in checks.values())


async def _arrive(gateway: int, guests: Sequence[str], *, rate: float, seconds: int) -> tuple[list[Answer], float]:
    """Orders at this rate. Each takes an idle connection, or a new one; none waits for the answer of another."""
    loop = asyncio.get_running_loop()
    requests = [load.request_of(gateway, guest, ROOM_TYPE) for guest in guests]
    crowd = _Crowd()
    began = loop.time()
    for number in range(int(rate * seconds)):
        due = began + number / rate
        if due > loop.time() + 0.001:
            await asyncio.sleep(due - loop.time())
        crowd.late = max(crowd.late, loop.time() - due)
        if crowd.idle:
            crowd.idle.pop().order(requests[number % len(requests)], due)
        elif crowd.open + crowd.opening < CONNECTIONS:
            crowd.opening += 1
            request = requests[number % len(requests)]
            connecting = loop.create_connection(partial(_Guest, crowd, request, due), "127.0.0.1", gateway)
            crowd.tasks.add(task := asyncio.create_task(connecting))
            task.add_done_callback(crowd.tasks.discard)
        else:
            crowd.answers.append(Answer(0.0, 0, says_when=False))
    await asyncio.sleep(5)
    took = loop.time() - began - 5
    crowd.answers += [Answer(5.0, 0, says_when=False)] * (int(rate * seconds) - len(crowd.answers))
    print(f"The orders were sent at most {1000 * crowd.late:.0f} ms too late.")
    return crowd.answers, took


@dataclass
class _Crowd:
    """The connections of all guests, and the answers."""

    answers: list[Answer] = field(default_factory=list)
    idle: list["_Guest"] = field(default_factory=list)
    tasks: set[asyncio.Task[Any]] = field(default_factory=set)
    open: int = 0
    opening: int = 0
    late: float = 0.0  # the generator's own delay, at most


class _Guest(asyncio.Protocol):
    """One connection: at most one order at a time. Little of the machine is used for it."""

    def __init__(self, crowd: _Crowd, request: bytes, due: float) -> None:
        self._crowd, self._request, self._due = crowd, request, due
        self._received = b""
        self._waits = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport
        self._crowd.open += 1
        self._crowd.opening -= 1
        self.order(self._request, self._due)

    def order(self, request: bytes, due: float) -> None:
        """Sends an order that was due at this time."""
        self._due, self._received, self._waits = due, b"", True
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, found, body = self._received.partition(b"\r\n\r\n")
        length = int(head.split(b"content-length: ")[1].split(b"\r\n")[0]) if found else 0
        if not found or len(body) < length:
            return
        self._answer(int(head[9:12]), says_when=b"retry-after: " in head)
        if b"connection: close" in head:
            self._transport.close()
        else:
            self._crowd.idle.append(self)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the base class's signature
        self._crowd.open -= 1
        if self in self._crowd.idle:
            self._crowd.idle.remove(self)
        if self._waits:
            self._answer(0, says_when=False)

    def _answer(self, status: int, *, says_when: bool) -> None:
        self._waits = False
        seconds = asyncio.get_running_loop().time() - self._due
        self._crowd.answers.append(Answer(seconds, status, says_when))


async def _recovered(gateway: int, guests: Sequence[str]) -> float:
    """Seconds until ten orders in a row are paid, each in less than 0.2 s."""
    began = time.perf_counter()
    in_a_row = 0
    while in_a_row < 10 and time.perf_counter() - began < 60:
        sent = time.perf_counter()
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway)
        writer.write(load.request_of(gateway, guests[0], ROOM_TYPE))
        status, body = await load.read_answer(reader)
        writer.close()
        is_paid = status == httpx.codes.OK and json.loads(body)["status"] == "PAID"
        in_a_row = in_a_row + 1 if is_paid and time.perf_counter() - sent < 0.2 else 0
        await asyncio.sleep(0.05)
    return time.perf_counter() - began


def _p99(ordered: Sequence[float]) -> float:
    return ordered[int(len(ordered) * 0.99)] if ordered else 0.0


if __name__ == "__main__":
    typer.run(main)
