"""The original's load test of its circuit breaker: `make siege`.

Every charge of the card processor takes a random 0 to 1000 ms, order_svc waits 300 ms for it, and 300 guests book for a
minute. An order that is placed but paid later counts as available: nobody is turned away. Afterwards the processor is
well again, every order that is still unpaid is paid, and the audit runs.
"""

import asyncio
import json
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import httpx
import typer
import uvloop

from bench.load import CARD, open_room_type, read_answer, request_of
from bench.plot import stacked_bars
from ops import audit, console
from ops.errors import StackError
from ops.stack import Stack

ROOM_TYPE = "Siege"
ILL = {"PAY_SANDBOX_DELAY_MS": "1000", "ORDER_PAY_TIMEOUT_SECONDS": "0.3"}
PAYERS = 16
PAID, LATER, FAILED = "paid at once", "to be paid later", "failed"
EJECTIONS = "cluster.pay_svc_egress.outlier_detection.ejections_enforced_total"


@dataclass(frozen=True, slots=True)
class Booking:
    """One call and what became of it. Times in seconds since the start."""

    began: float
    ended: float
    outcome: str
    order_id: str
    token: str


def main(
    seconds: Annotated[int, typer.Option(min=1, help="Of load.")] = 60,
    users: Annotated[int, typer.Option(min=1, help="Guests at a time.")] = 300,
    plot: Annotated[Path, typer.Option(help="Where the plot is written.")] = Path(".run/siege.svg"),
) -> None:
    """Books while payments are slow, and checks that nobody is turned away and every order can be paid afterwards."""
    home = Path(".run/siege")
    shutil.rmtree(home, ignore_errors=True)
    stack = Stack.on_free_ports(home)
    try:
        holds = _besiege(stack, seconds=seconds, users=users, plot=plot)
    except StackError as error:
        sys.exit(f"siege: {error}")
    finally:
        stack.down()
    sys.exit(0 if holds else 1)


def _besiege(stack: Stack, *, seconds: int, users: int, plot: Path) -> bool:
    os.environ.update(ILL)
    stack.up()
    open_room_type(stack.gateway_url, stack.token(subject="bench", role="desk"), ROOM_TYPE)
    bookings = uvloop.run(_book(stack, users=users, seconds=seconds))
    ejections = _statistic(stack, EJECTIONS)
    for name in ILL:
        del os.environ[name]
    stack.down()
    stack.up()
    unpaid = uvloop.run(_pay_the_rest(stack, [each for each in bookings if each.outcome == LATER]))
    found = {number: broken for number, broken in audit.check(stack).items() if broken}

    outcomes = Counter(each.outcome for each in bookings)
    latencies = sorted(each.ended - each.began for each in bookings)
    available = 100 * (1 - outcomes[FAILED] / len(bookings))
    report = console.table("", "here", "the original", right=("here", "the original"))
    report.add_row("availability", f"{available:.2f} %", "42.31 %")
    report.add_row("orders a second", f"{len(bookings) / seconds:.0f}", "1.85")
    report.add_row("p50", f"{latencies[len(latencies) // 2]:.3f} s", "")
    report.add_row("p99", f"{latencies[int(len(latencies) * 0.99)]:.3f} s", "")
    report.add_row("longest", f"{latencies[-1]:.3f} s", "58 s")
    for outcome in (PAID, LATER, FAILED):
        report.add_row(outcome, f"{outcomes[outcome]}", "")
    report.add_row("ejections of pay_svc", f"{ejections}", "")
    report.add_row("still unpaid afterwards", f"{unpaid}", "")
    report.add_row("the audit", "holds" if not found else f"violated: {found}", "")
    console.show(report)
    plot.parent.mkdir(parents=True, exist_ok=True)
    plot.write_text(_plot(bookings, seconds))
    print(f"The plot is {plot}.")
    return not outcomes[FAILED] and not unpaid and not found


async def _book(stack: Stack, *, users: int, seconds: int) -> list[Booking]:
    """Each user books as fast as the answers come, every time as another guest."""
    bookings: list[Booking] = []
    started = time.perf_counter()

    async def user(number: int) -> None:
        count = 0
        while time.perf_counter() - started < seconds:
            count += 1
            token = stack.token(subject=f"siege-{number}-{count}", role="guest")
            began = time.perf_counter() - started
            status, body = await _send(stack.ports["gateway"], request_of(stack.ports["gateway"], token, ROOM_TYPE))
            order = json.loads(body) if status == httpx.codes.OK else {}
            outcome = {"PAID": PAID, "PAYMENT_PENDING": LATER}.get(order.get("status", ""), FAILED)
            if outcome == FAILED and len([each for each in bookings if each.outcome == FAILED]) < 3:
                print(f"failed: {status} {body[:300]!r}")
            bookings.append(Booking(began, time.perf_counter() - started, outcome, order.get("id", ""), token))

    async with asyncio.TaskGroup() as tasks:
        for number in range(users):
            tasks.create_task(user(number))
    return bookings


async def _send(port: int, request: bytes) -> tuple[int, bytes]:
    """One request on a connection of its own, as a new guest has; status 0 if the connection breaks."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(request)
            return await read_answer(reader)
        finally:
            writer.close()
    except OSError as error:
        return 0, repr(error).encode()


async def _pay_the_rest(stack: Stack, bookings: Sequence[Booking]) -> int:
    """Pays what is still unpaid; returns how many orders are unpaid in the end."""
    left = list(bookings)
    unpaid: list[str] = []

    async def payer(client: httpx.AsyncClient) -> None:
        while left:
            booking = left.pop()
            headers = {"Authorization": f"Bearer {booking.token}"}
            for attempt in range(10):
                body = {"cardNo": CARD, "requestId": f"later-{attempt}"}
                answer = await client.post(f"/orders/{booking.order_id}:pay", json=body, headers=headers)
                if answer.is_success and answer.json()["status"] == "PAID":
                    break
                await asyncio.sleep(1)  # the attempt of the siege may still be open
            else:
                unpaid.append(f"{booking.order_id}: {answer.text[:200]}")

    with console.progress("paying the rest", len(left)) as advance:
        async with (
            httpx.AsyncClient(base_url=stack.gateway_url, timeout=20) as client,
            asyncio.TaskGroup() as tasks,
        ):
            for _ in range(PAYERS):
                tasks.create_task(payer(client))
        advance(len(bookings))
    for each in unpaid[:3]:
        print(f"unpaid: {each}")
    return len(unpaid)


def _statistic(stack: Stack, name: str) -> int:
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(stack.admin_socket)), base_url="http://envoy") as admin:
        return int(admin.get("/stats", params={"filter": f"^{name}$"}).text.split()[-1])


def _plot(bookings: Sequence[Booking], seconds: int) -> str:
    series = {outcome: [0] * seconds for outcome in (PAID, LATER, FAILED)}
    for booking in bookings:
        if booking.ended < seconds:
            series[booking.outcome][int(booking.ended)] += 1
    return stacked_bars("Orders in each second, while payments are slow", series, unit="s")


if __name__ == "__main__":
    typer.run(main)
