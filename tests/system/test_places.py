"""How many calls find a place at a service (envoy/places.lua): a gateway and a service of the test's own."""

import asyncio
import re
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx

from gotohotel.order.v1 import order_service_pb2 as pb
from gotohotel.rpc.server import RpcServer
from ops import gateway, ports
from ops.stack import Stack
from tests.conftest import Hotel
from tests.gateways import configuration_for, running_envoy, statistic

SERVICE = pb.DESCRIPTOR.services_by_name["OrderService"]
PLACES, FEWEST, LATELY = 30, 10, 100  # less than a hotel's, so that the test needs few calls
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
    twin = Stack.on_free_ports(folder)
    text = configuration_for(twin, stack).replace(str(stack.ports["order"]), str(port))
    text, found = re.subn(rf'(PLACES = \\"order_svc\\", ){gateway.MAX_CALLS}\b', rf"\g<1>{PLACES}", text)
    assert found == 1
    (folder / "envoy.yaml").write_text(re.sub(r"(LATELY = )\d+", rf"\g<1>{LATELY}", text))
    await server.start()
    with running_envoy(twin):
        yield twin
    await server.stop(grace_seconds=1)


async def guests(
    gateway_of: Stack, stack: Stack, count: int, *, wait_when_refused: float, seconds: float = SECONDS
) -> Counter[int]:
    """So many guests call again and again for some seconds; counts the statuses of the answers."""
    seen: Counter[int] = Counter()
    ends = asyncio.get_running_loop().time() + seconds

    async def guest(number: int) -> None:
        headers = {"Authorization": f"Bearer {stack.token(subject=f'places-{number}', role='guest')}"}
        async with httpx.AsyncClient(base_url=gateway_of.gateway_url, headers=headers, timeout=20) as client:
            while asyncio.get_running_loop().time() < ends:
                status = (await client.get("/orders")).status_code
                seen[status] += 1
                if status != httpx.codes.OK:
                    await asyncio.sleep(wait_when_refused)

    await asyncio.gather(*map(guest, range(count)))
    return seen


async def test_a_service_that_refuses_most_calls_has_fewer_places(hotel: Hotel, tmp_path: Path) -> None:
    """So those that it takes wait for fewer others. After the rush a burst finds all places again."""
    one_at_a_time = asyncio.Lock()

    async def act() -> None:
        async with one_at_a_time:
            await asyncio.sleep(0.01)

    work = Work(act)
    async with gateway_before(work, hotel.stack, tmp_path) as twin:
        rush = await guests(twin, hotel.stack, 3 * PLACES, wait_when_refused=0.1)
        most_at_first, work.most = work.most, 0
        rush += await guests(twin, hotel.stack, 3 * PLACES, wait_when_refused=0.1)
        most_in_the_rush = work.most
        refused = statistic(twin, "cluster.no_place.upstream_rq_pending_overflow")
        await asyncio.sleep(2)
        work.most = 0
        burst = await guests(twin, hotel.stack, PLACES, wait_when_refused=0.1, seconds=0.1)

    assert most_at_first > 2 * FEWEST
    assert most_in_the_rush <= FEWEST + 2
    assert set(rush) == {200, 503}
    assert rush[503] == refused
    assert work.most > FEWEST
    assert set(burst) == {200}


async def test_guests_for_whom_all_places_are_enough_get_them_back(hotel: Hotel, tmp_path: Path) -> None:
    """Also if calls wait for something else, so that fewer places let fewer through, and some are still refused."""

    async def act() -> None:
        await asyncio.sleep(0.1)

    async with gateway_before(Work(act), hotel.stack, tmp_path) as twin:
        rush = await guests(twin, hotel.stack, 3 * PLACES, wait_when_refused=0.05)
        after_it = await guests(twin, hotel.stack, PLACES - 5, wait_when_refused=0.5)
        later = await guests(twin, hotel.stack, PLACES - 5, wait_when_refused=0.5)

    assert rush[503] > rush[200]
    assert set(after_it) <= {200, 503}
    assert set(later) == {200}
