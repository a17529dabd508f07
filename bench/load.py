"""Orders through the gateway over hand-written HTTP: the generator uses little of the machine that it measures."""

import asyncio
import json
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from functools import partial
from itertools import cycle

import asyncpg
import httpx

from gotohotel.ids import first_id_at
from ops.errors import StackError
from ops.stack import Stack

NIGHTS = 300  # orders are for one night of the next so many
GUESTS = 64  # at least, so that few fast clients reach nobody's limit
CARD = "4242424242424242"
CATCH_UP_SECONDS = 120
EVER = datetime.fromtimestamp(0, tz=UTC)


@dataclass
class Outcome:
    """The latency of each paid order in seconds, and the other answers."""

    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    others: list[str] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Paid orders a second."""
        return len(self.latencies) / self.seconds

    def percentile(self, percent: float) -> float:
        """That percentile of the latencies, in milliseconds."""
        return percentile(self.latencies, percent)


def percentile(seconds: Sequence[float], percent: float) -> float:
    """A percentile of durations in seconds, in milliseconds."""
    ordered = sorted(seconds)
    return 1000 * ordered[min(int(len(ordered) * percent / 100), len(ordered) - 1)]


def guests_of(clients: int, token: Callable[[str], str]) -> list[list[str]]:
    """For each client the tokens of the guests whose calls it makes in turn: one guest may make fifty a second."""
    tokens = [token(f"bench-{number}") for number in range(max(GUESTS, clients))]
    return [tokens[number::clients] for number in range(clients)]


async def run(
    port: int,
    guests: Sequence[Sequence[str]],
    room_type: str,
    *,
    seconds: float,
    orders_per_second: float | None = None,
    hosts: Sequence[str] = ("127.0.0.1",),
) -> Outcome:
    """Each client places and pays orders for its guests in turn (their tokens, as guests_of gives them): as fast as the
    answers come, or at a given rate. The clients are spread over the hosts.
    """
    outcome = Outcome()
    started = time.perf_counter()
    ends = started + seconds
    interval = len(guests) / orders_per_second if orders_per_second else 0.0
    async with asyncio.TaskGroup() as tasks:
        for number, tokens in enumerate(map(cycle, guests)):
            first = started + interval * number / len(guests)
            request = partial(_next_request, port, tokens, room_type)
            place = (hosts[number % len(hosts)], port)
            tasks.create_task(_client(place, request, outcome, ends=ends, first=first, interval=interval))
    outcome.seconds = time.perf_counter() - started
    return outcome


async def _client(
    place: tuple[str, int],
    request: Callable[[], bytes],
    outcome: Outcome,
    *,
    ends: float,
    first: float,
    interval: float,
) -> None:
    reader, writer = await asyncio.open_connection(*place)
    due = first
    while True:
        if interval:
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            due += interval
        began = time.perf_counter()
        if began >= ends:
            break
        writer.write(request())
        _, body = await read_answer(reader)
        if b'"status":"PAID"' in body:
            outcome.latencies.append(time.perf_counter() - began)
        else:
            outcome.others.append(body.decode()[:200])
    writer.close()
    await writer.wait_closed()


def _next_request(port: int, tokens: Iterator[str], room_type: str) -> bytes:
    return request_of(port, next(tokens), room_type)


async def read_answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """Status and body of one answer with a Content-Length. Raises OSError if the connection ends before."""
    head, body = await read_head(reader)
    return int(head.split(b" ", 2)[1]), body


async def read_head(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """Head, in lower case, and body of an answer with a Content-Length. Raises OSError if the connection ends."""
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = int(head.split(b"content-length:")[1].split(b"\r\n")[0])
        return head, await reader.readexactly(length)
    except asyncio.IncompleteReadError as error:
        raise ConnectionError("the connection has ended") from error


def request_of(port: int, token: str, room_type: str) -> bytes:
    """POST /orders with a card, for a random night."""
    night = date.today() + timedelta(days=random.randrange(2, NIGHTS))  # noqa: DTZ011 - any day near today will do
    order = {
        "name": "Bench",
        "roomType": room_type,
        "guestCnt": 2,
        "checkIn": night.isoformat(),
        "checkOut": (night + timedelta(days=1)).isoformat(),
        "cardNo": CARD,
    }
    body = json.dumps(order).encode()
    return (
        f"POST /orders HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAuthorization: Bearer {token}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode() + body


async def caught_up(stack: Stack, *, since: datetime = EVER) -> float:
    """Waits until My page, in PostgreSQL, has every order that was paid since then, and its reservation; returns how
    many seconds that took.
    """
    started, first = time.perf_counter(), first_id_at(since)
    orders = await asyncpg.connect(stack.database_url("order_svc", "postgres"))
    pages = await asyncpg.connect(stack.database_url("mypage_svc", "postgres"))
    paid = await orders.fetchval("SELECT count(*) FROM orders WHERE status = 'PAID' AND id >= $1", first)
    shown = """
    SELECT count(*)
    FROM mypages
    WHERE facts ?& ARRAY['order/1', 'pay/1', 'reservation/1']
      AND order_id >= $1
    """
    while await pages.fetchval(shown, first) < paid:
        if time.perf_counter() - started > CATCH_UP_SECONDS:
            raise StackError(f"My page has not caught up after {CATCH_UP_SECONDS} s.")
        await asyncio.sleep(0.05)
    await orders.close()
    await pages.close()
    return time.perf_counter() - started


def open_room_type(gateway_url: str, token: str, room_type: str) -> None:
    """A room type with more rooms than can be sold, with the desk's token."""
    headers = {"Authorization": f"Bearer {token}"}
    with httpx.Client(base_url=gateway_url, headers=headers, timeout=10) as client:
        body = {"capacity": 10_000, "maxGuests": 2, "nightlyRate": {"currencyCode": "KRW", "units": 1}}
        client.put(f"/roomTypes/{room_type}", json=body).raise_for_status()
        while room_type not in client.get("/rooms").raise_for_status().text:
            time.sleep(0.1)
