"""Calls that only read, through the gateway: how many a second, and what one costs."""

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from http.client import OK, TOO_MANY_REQUESTS
from itertools import cycle

from bench import load, usage
from ops.errors import StackError
from ops.stack import Stack

BOOKINGS = 2  # of each guest
RETRY_SECONDS = 1.0


@dataclass
class Reads:
    """Calls of one RPC: latencies in seconds, and CPU milliseconds a call, of all processes but the load generator."""

    seconds: float = 0.0
    cpu: float = 0.0
    latencies: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Calls a second."""
        return len(self.latencies) / self.seconds


async def measure(
    stack: Stack, pids: Mapping[str, int], room_type: str, *, clients: int, seconds: float
) -> dict[str, Reads]:
    """By RPC: each client calls as fast as the answers come, for guests who have two bookings each.

    The gateway answers 2,000 calls a second of one address: a machine that could do more can't show it.
    """
    port = stack.ports["gateway"]
    groups = load.guests_of(clients, lambda subject: stack.token(subject=f"reads-{subject}", role="guest"))
    booked = await asyncio.gather(*(_book(port, group, room_type) for group in groups))
    await load.caught_up(stack)
    night = date.today() + timedelta(days=7)  # noqa: DTZ011 - any will do
    search = f"/rooms?checkIn={night}&checkOut={night + timedelta(days=2)}"
    paths = {
        "SearchRooms": [[search for _ in group] for group in groups],
        "GetMyPage": [[f"/mypages/{order}" for order in orders] for orders in booked],
        "ListMyPages": [["/mypages" for _ in group] for group in groups],
    }
    found = {}
    for rpc, of_clients in paths.items():
        reads, before, began = Reads(), usage.cpu_seconds(pids), time.perf_counter()
        requests = [
            [_get(port, path, token) for path, token in zip(wanted, group, strict=True)]
            for group, wanted in zip(groups, of_clients, strict=True)
        ]
        await asyncio.gather(*(_read(port, each, reads, ends=began + seconds) for each in requests))
        reads.seconds = time.perf_counter() - began
        after = usage.cpu_seconds(pids)
        reads.cpu = 1000 * sum(after[name] - before[name] for name in pids) / len(reads.latencies)
        found[rpc] = reads
    return found


async def _book(port: int, guests: Sequence[str], room_type: str) -> list[str]:
    """Places the bookings of some guests; returns one order of each."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    orders = []
    for guest in guests:
        for _ in range(BOOKINGS):
            writer.write(load.request_of(port, guest, room_type))
            status, body = await load.read_answer(reader)
            if status != OK:
                raise StackError(f"A booking was answered with {status}: {body[:200]!r}")
        orders.append(str(json.loads(body)["id"]))
    writer.close()
    await writer.wait_closed()
    return orders


async def _read(port: int, requests: Sequence[bytes], reads: Reads, *, ends: float) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for request in cycle(requests):
        began = time.perf_counter()
        if began >= ends:
            break
        writer.write(request)
        status, body = await load.read_answer(reader)
        if status == TOO_MANY_REQUESTS:
            await asyncio.sleep(RETRY_SECONDS)
        elif status != OK:
            raise StackError(f"A call that reads was answered with {status}: {body[:200]!r}")
        else:
            reads.latencies.append(time.perf_counter() - began)
    writer.close()
    await writer.wait_closed()


def _get(port: int, path: str, token: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAuthorization: Bearer {token}\r\n\r\n".encode()
