"""Shared fixtures: one embedded stack for all tests, clients of it, and scratch databases on its server."""

import asyncio
import os
import shutil
import signal
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import psutil
import pytest

from gotohotel.database import Database, open_database
from gotohotel.domain import Actor, Role
from ops import audit, certificates
from ops.stack import Stack
from tests.databases import Databases, create_database, drop_database
from tests.schedule import pytest_xdist_make_scheduler  # noqa: F401 - pytest calls it

ROOT = Path(__file__).parents[1]
# Where Helm keeps what it knows of a cluster: not in a home. It reads this only when a process starts.
os.environ.setdefault("KUBECACHEDIR", str(ROOT / ".pytest_cache" / "kube"))
# httpx reads the public authorities anew for each client (70 ms of CPU): no test calls whom they have certified.
os.environ["SSL_CERT_DIR"] = str(ROOT / "tests")
os.environ.pop("SSL_CERT_FILE", None)
GOOD_CARD = "4242424242424242"
WAIT_SECONDS = 30
MAX_DAYS_AHEAD = 360  # order_svc takes bookings for a year
GUEST, DESK = Actor("alice", Role.GUEST), Actor("front desk", Role.DESK)
DAY = date(2026, 1, 1)  # the property's date, where no test depends on it


class Client:
    """Calls the gateway as one caller."""

    def __init__(self, stack: Stack, *, subject: str, role: str) -> None:
        self.subject = subject
        self.token = stack.token(subject=subject, role=role)
        headers = {"Authorization": f"Bearer {self.token}"}
        self._http = httpx.Client(base_url=stack.gateway_url, headers=headers, timeout=20)

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Makes one call and returns the response, whatever its status."""
        return self._http.request(method, path, **options)

    def get(self, path: str) -> Any:
        """A GET that must succeed."""
        return _body(self.request("GET", path))

    def post(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """A POST that must succeed."""
        return _body(self.request("POST", path, json=body or {}))

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()


def _body(answer: httpx.Response) -> Any:
    """What a call that must succeed has answered."""
    try:
        return answer.raise_for_status().json()
    except httpx.HTTPStatusError as error:
        error.add_note(answer.text)
        raise


class Hotel:
    """The running system, with a client of the desk and helpers for callers, room types and orders."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self._clients: list[Client] = []
        self.desk = self.caller(role="desk")
        self._next_night = date.today() + timedelta(days=3)  # noqa: DTZ011 - any unused night will do

    def caller(self, *, role: str = "guest", subject: str | None = None) -> Client:
        """A new client; its subject is unique unless one is given."""
        client = Client(self.stack, subject=subject or f"{role}-{uuid.uuid4()}", role=role)
        self._clients.append(client)
        return client

    def room_type(self, capacity: int) -> str:
        """Creates a room type and waits until it is on sale."""
        name = f"T{uuid.uuid4().hex[:12]}"
        self.set_capacity(name, capacity)
        wait_for(lambda: name in [room["roomType"] for room in self.search()])
        return name

    def set_capacity(self, room_type: str, capacity: int) -> None:
        """Creates or changes a room type, as the desk does."""
        rate = {"currencyCode": "KRW", "units": "1000"}
        body = {"capacity": capacity, "maxGuests": 4, "nightlyRate": rate}
        _body(self.desk.request("PUT", f"/roomTypes/{room_type}", json=body))

    def search(self, stay: dict[str, str] | None = None) -> list[dict[str, Any]]:
        """The rooms that SearchRooms returns."""
        rooms: list[dict[str, Any]] = _body(self.desk.request("GET", "/rooms", params=stay))["rooms"]
        return rooms

    def available(self, room_type: str, stay: dict[str, str]) -> int:
        """How many rooms of a type are free."""
        return next(int(room["available"]) for room in self.search(stay) if room["roomType"] == room_type)

    def stay(self, nights: int = 1) -> dict[str, str]:
        """Nights that no other test books, as long as there are some: then the first ones come again."""
        if (self._next_night - date.today()).days + nights > MAX_DAYS_AHEAD:  # noqa: DTZ011 - as above
            self._next_night = date.today() + timedelta(days=3)  # noqa: DTZ011
        check_in = self._next_night
        self._next_night += timedelta(days=nights)
        return {"checkIn": check_in.isoformat(), "checkOut": self._next_night.isoformat()}

    def order(self, guest: Client, *, card: str | None = GOOD_CARD, **booking: Any) -> dict[str, Any]:
        """Places an order; the call must succeed."""
        order: dict[str, Any] = guest.post("/orders", self.booking(card=card, **booking))
        return order

    def booking(self, *, card: str | None = GOOD_CARD, **booking: Any) -> dict[str, Any]:
        """The body of POST /orders."""
        body = {"name": "Guest", "roomType": "Normal", "guestCnt": 2, **booking}
        if "checkIn" not in body:
            body.update(self.stay())
        return {**body, "cardNo": card} if card else body

    def page_with(self, order_id: str, **fields: str) -> dict[str, Any]:
        """Waits until My page shows these fields, and returns it."""
        return self._with(f"/mypages/{order_id}", fields)

    def order_with(self, order_id: str, **fields: str) -> dict[str, Any]:
        """Waits until the order shows these fields, and returns it."""
        return self._with(f"/orders/{order_id}", fields)

    def reservation_with(self, order_id: str, **fields: str) -> dict[str, Any]:
        """Waits until the reservation shows these fields, and returns it."""
        return self._with(f"/reservations/{order_id}", fields)

    def _with(self, path: str, fields: dict[str, str]) -> dict[str, Any]:
        seen: dict[str, Any] = {}

        def shows() -> bool:
            answer = self.desk.request("GET", path)
            seen.clear()
            seen.update(answer.json())
            return answer.is_success and all(seen[field] == value for field, value in fields.items())

        wait_for(shows, lambda: f"{path} shows {seen}, not {fields}")
        return seen

    def close(self) -> None:
        """Closes every caller's connections."""
        for client in self._clients:
            client.close()


def wait_for(condition: Callable[[], bool], otherwise: Callable[[], str] = lambda: "the condition is not met") -> None:
    """Waits until the condition holds; fails the test if it does not hold in time."""
    ends = time.monotonic() + WAIT_SECONDS
    while not condition():
        if time.monotonic() > ends:
            pytest.fail(otherwise())
        time.sleep(0.05)


def freeze(pid: int) -> None:
    """SIGSTOP; returns when the process has stopped: until then its threads go on."""
    os.kill(pid, signal.SIGSTOP)
    wait_for(lambda: psutil.Process(pid).status() == psutil.STATUS_STOPPED)


@asynccontextmanager
async def within(seconds: float) -> AsyncIterator[None]:
    """Fails the test if the block takes longer."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        pytest.fail(f"the block took longer than {seconds} s")


@pytest.fixture(scope="session")
def stack() -> Iterator[Stack]:
    """One stack for all tests, on free ports. After the last test the audit must find nothing."""
    home = Path(tempfile.mkdtemp(prefix="gotohotel-"))
    running = Stack.on_free_ports(home)
    os.environ["KAKAO"] = "fake"  # messages go to a provider of the stack's own, whose log the audit counts
    try:
        running.up()
        del os.environ["KAKAO"]
        yield running
        assert not {number: found for number, found in audit.check(running).items() if found}
    finally:
        running.down()
        shutil.rmtree(home)


@pytest.fixture(scope="session")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Certificates for tests of single parts, a folder for each; `pay` is a service that may not name anybody."""
    folder = tmp_path_factory.mktemp("tls")
    certificates.make(folder, ("order", "pay", "gateway", "egress"))
    return folder


@pytest.fixture(scope="session")
def hotel(stack: Stack) -> Iterator[Hotel]:
    """The running system."""
    running = Hotel(stack)
    yield running
    running.close()


@pytest.fixture
def guest(hotel: Hotel) -> Client:
    """A guest that no other test uses."""
    return hotel.caller()


@pytest.fixture
async def scratch_url(stack: Stack) -> AsyncIterator[str]:
    """The URL of an empty database, for tests of migrations."""
    url = await create_database(stack)
    yield url
    await drop_database(stack, url)


@asynccontextmanager
async def closed(stack: Stack, url: str) -> AsyncIterator[None]:
    """Ends a database's connections, and lets nobody in inside the block."""
    name = url.rsplit("/", 1)[-1]
    admin = await asyncpg.connect(stack.database_url("postgres", "postgres"))
    try:
        await admin.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false')
        await admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", name)
        yield
    finally:
        await admin.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true')
        await admin.close()


@pytest.fixture(scope="session")
def databases(stack: Stack) -> Databases:
    """Databases with the services' schemas, which tests use one after another."""
    return Databases(stack)


@pytest.fixture
async def order_url(databases: Databases) -> AsyncIterator[str]:
    """The URL of a database with order_svc's schema and no orders."""
    async with databases.of(ROOT / "order_svc" / "migrations") as url:
        yield url


@pytest.fixture
async def order_database(order_url: str) -> AsyncIterator[Database]:
    """The same database, opened."""
    async with open_database(order_url, name="test", pool_size=20) as database:
        yield database


@pytest.fixture
async def reservation_database(databases: Databases) -> AsyncIterator[Database]:
    """A database with reservation_svc's schema and no reservations."""
    async with (
        databases.of(ROOT / "reservation_svc" / "migrations") as url,
        open_database(url, name="test", pool_size=5) as database,
    ):
        yield database


@pytest.fixture
async def pay_database(databases: Databases) -> AsyncIterator[Database]:
    """A database with pay_svc's schema and the sandbox's ledger, both empty."""
    folders = ROOT / "pay_svc" / "migrations", ROOT / "pay_svc" / "sandbox" / "migrations"
    async with databases.of(*folders) as url, open_database(url, name="test", pool_size=20) as database:
        yield database


@pytest.fixture
async def mypage_url(databases: Databases) -> AsyncIterator[str]:
    """The URL of a database with mypage_svc's schema and no pages."""
    async with databases.of(ROOT / "mypage_svc" / "migrations") as url:
        yield url


@pytest.fixture
async def mypage_database(mypage_url: str) -> AsyncIterator[Database]:
    """The same database, opened."""
    async with open_database(mypage_url, name="test", pool_size=5) as database:
        yield database
