"""How many calls find a place at a service (envoy/places.lua): a gateway and a service of the test's own."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx

from gotohotel.order.v1 import order_service_pb2 as pb
from gotohotel.rpc.server import RpcServer
from ops import gateway, ports
from ops.services import SERVICES
from ops.stack import Stack
from tests.conftest import Hotel
from tests.gateways import Change, another_gateway, statistic

SERVICE = pb.DESCRIPTOR.services_by_name["OrderService"]
PLACES, FEWEST, LATELY = 30, 10, 100  # less than a hotel's, so that the test needs few calls
MANY = 90  # guests
SECONDS = 3.0


class Work:
    """What the service does for each call, and how many calls it had at once."""

    def __init__(self, act: Callable[[], Awaitable[None]]) -> None:
        self._act = act
        self._now = 0
        self.most = 0

    async def __call__(self, *_: Any) -> pb.ListOrdersResponse:
        """Answers a call when the work is done."""
        self._now += 1
        self.most = max(self.most, self._now)
        try:
            await self._act()
        finally:
            self._now -= 1
        return pb.ListOrdersResponse()


@asynccontextmanager
async def gateway_before(work: Work, stack: Stack, folder: Path) -> AsyncIterator[Stack]:
    """A gateway with few places, whose order_svc does this work."""
    [port] = ports.reserve(1)
    server = RpcServer(port=port, host="127.0.0.1", tls_folder=stack.tls_folder("order"))
    server.add(SERVICE, type("Working", (), {method.name: staticmethod(work) for method in SERVICE.methods})())
    changes = [
        Change(rf"\b{stack.ports['order']}\b", str(port), times=2),
        Change(rf'(PLACES = \\"order_svc\\", ){gateway.MAX_CALLS}\b', rf"\g<1>{PLACES}"),
        Change(r"(LATELY = )1000\b", rf"\g<1>{LATELY}", times=len(SERVICES)),
    ]
    await server.start()
    try:
        with another_gateway(stack, folder, *changes) as twin:
            yield twin
    finally:
        await server.stop(grace_seconds=1)


class Guests:
    """Guests who list their orders; they count the statuses of the answers."""

    def __init__(self, clients: list[httpx.AsyncClient]) -> None:
        self._clients = clients
        self.seen: Counter[int] = Counter()

    async def call(self, guest: int) -> bool:
        """One call; whether it found a place."""
        status = (await self._clients[guest].get("/orders")).status_code
        self.seen[status] += 1
        return status == httpx.codes.OK

    async def keep_calling(self, count: int, *, wait_when_refused: float) -> None:
        """So many guests call again and again, until canceled."""

        async def guest(number: int) -> None:
            while True:
                if not await self.call(number):
                    await asyncio.sleep(wait_when_refused)

        await asyncio.gather(*map(guest, range(count)))

    async def until_refused(self, count: int) -> None:
        """Waits until so many calls have been refused."""
        async with asyncio.timeout(60):
            while self.seen[httpx.codes.SERVICE_UNAVAILABLE] < count:  # noqa: ASYNC110 - each answer would set an event
                await asyncio.sleep(0.05)

    async def rush(self, seconds: float, count: int, *, wait_when_refused: float) -> Counter[int]:
        """The answers of so many guests who call again and again for so long."""
        self.seen = Counter()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.keep_calling(count, wait_when_refused=wait_when_refused)
        return self.seen


@asynccontextmanager
async def guests_of(twin: Stack, stack: Stack) -> AsyncIterator[Guests]:
    """Guests with a connection each."""
    async with contextlib.AsyncExitStack() as opened:
        clients = []
        for number in range(MANY):
            token = stack.token(subject=f"places-{number}", role="guest")
            client = httpx.AsyncClient(
                base_url=twin.gateway_url,
                headers={"Authorization": f"Bearer {token}"},
                timeout=20,
                verify=False,  # noqa: S501 - plain HTTP: certificates would only take time to load
            )
            clients.append(await opened.enter_async_context(client))
        yield Guests(clients)


async def test_a_service_that_refuses_most_calls_has_fewer_places(hotel: Hotel, tmp_path: Path) -> None:
    """So those that it takes wait for fewer others. After the rush a burst finds all places again."""
    one_at_a_time = asyncio.Lock()

    async def act() -> None:
        async with one_at_a_time:
            await asyncio.sleep(0.02)

    work = Work(act)
    async with gateway_before(work, hotel.stack, tmp_path) as twin, guests_of(twin, hotel.stack) as guests:
        rush = asyncio.create_task(guests.keep_calling(MANY, wait_when_refused=0.1))
        await guests.until_refused(5 * LATELY)
        most_at_first, work.most = work.most, 0
        await guests.until_refused(10 * LATELY)
        most_later = work.most
        rush.cancel()
        await asyncio.wait({rush})
        refused = statistic(twin, "http.public.fault.aborts_injected")
        await asyncio.sleep(2)
        seen, guests.seen, work.most = guests.seen, Counter(), 0
        await asyncio.gather(*map(guests.call, range(PLACES)))

    assert most_at_first > 2 * FEWEST
    assert most_later <= FEWEST + 2
    assert set(seen) == {200, 503}
    assert refused >= seen[503] > seen[200]
    assert work.most > 2 * FEWEST
    assert guests.seen == {200: PLACES}


async def test_guests_for_whom_all_places_are_enough_get_them_back(hotel: Hotel, tmp_path: Path) -> None:
    """Also if their calls wait for something else, so that fewer places let fewer through, and the refused come again a
    second later, as they are told, so that many calls are refused.
    """

    async def act() -> None:
        await asyncio.sleep(seconds_of_work)

    seconds_of_work = 0.1
    async with gateway_before(Work(act), hotel.stack, tmp_path) as twin, guests_of(twin, hotel.stack) as guests:
        rush = await guests.rush(SECONDS, MANY, wait_when_refused=0.05)
        seconds_of_work = 2.0
        just_after = await guests.rush(8, PLACES - 5, wait_when_refused=1)
        later = await guests.rush(5, PLACES - 5, wait_when_refused=1)

    assert rush[503] > rush[200]
    assert just_after[200] >= PLACES - 5
    assert set(later) == {200}
