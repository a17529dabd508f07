"""Outbox, relay, stream, consumer, inbox and dead letters, on real PostgreSQL and a separate NATS server.

Long because each case needs the same server, relay and consumer.
"""

import asyncio
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import asyncpg
import nats
import psutil
import pytest
from google.protobuf.message import Message
from nats.js.api import AckPolicy, ConsumerConfig

from gotohotel import outbox
from gotohotel.bus import streams
from gotohotel.bus.connection import Bus
from gotohotel.bus.consumer import (
    HANDLED_BY,
    MAX_POISONED_IN_A_ROW,
    NOBODY,
    REDRIVE_FOR,
    Consumer,
    ConsumerHalted,
    Requirement,
    Untrusted,
)
from gotohotel.bus.streams import DEAD_LETTERS, EVENTS, DeclarationDiffers, declare_consumer
from gotohotel.columns import Statement
from gotohotel.database import Connection, Database
from gotohotel.ids import new_id
from gotohotel.order.v1.events_pb2 import OrderCanceled, OrderExpired
from gotohotel.outbox import INSERT_OUTBOX, RELAY_LOCK, OutboxRow, Relay, outbox_values
from gotohotel.policies import Policies, ReceivedEvent
from ops.stack import Stack
from tests.conftest import ROOT, closed, freeze, within

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
PATIENCE_SECONDS = 30.0  # events that a stopped consumer held are delivered again after ACK_WAIT_SECONDS


class Server:
    """A NATS server that a test may kill and start again."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="gotohotel-nats-"))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"nats://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        """Starts it on the same port with the same store."""
        program = ROOT / ".venv" / "bin" / "nats-server"
        command = [str(program), "-a", "127.0.0.1", "-p", str(self.port), "-js", "-sd", str(self.folder)]
        self.process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return

    def freeze(self) -> None:
        """SIGSTOP; returns when it has stopped."""
        freeze(self.process.pid)

    def kill(self) -> None:
        """kill -9."""
        self.process.kill()
        self.process.wait()


@pytest.fixture
def server() -> Iterator[Server]:
    """A separate NATS server."""
    running = Server()
    yield running
    running.kill()
    shutil.rmtree(running.folder)


@asynccontextmanager
async def running(url: str, name: str = "test_svc") -> AsyncIterator[Bus]:
    """A connected bus."""
    bus = Bus(url, name=name)
    try:
        await bus.connect(asyncio.Event())
        yield bus
    finally:
        await bus.close()


class Seen:
    """Policies that record what they handle; a cancel with the reason "poison" raises an error."""

    def __init__(self) -> None:
        self.orders: list[str] = []
        self.broken = True
        self.policies: Policies[list[str]] = Policies(self._open_work)

        @self.policies.whenever(OrderCanceled)
        def cancel(event: OrderCanceled, work: list[str]) -> None:
            if event.reason == "poison":
                raise ValueError("poison")
            work.append(event.order_id)

    @asynccontextmanager
    async def _open_work(self, connection: Connection, _: Sequence[ReceivedEvent]) -> AsyncIterator[list[str]]:
        work: list[str] = []
        yield work
        await connection.execute("SELECT 1")
        self.orders += work


async def announce(database: Database, *orders: str, reason: str = "") -> None:
    """Writes an OrderCanceled for each order; an order that is given twice gets two versions."""
    versions: dict[str, int] = {}
    rows = []
    for order in orders:
        versions[order] = versions.get(order, 0) + 1
        message = OrderCanceled(order_id=order, version=versions[order], reason=reason)
        rows.append(OutboxRow(order, versions[order], message, NOON))
    await store(database, rows)


async def store(database: Database, rows: list[OutboxRow]) -> None:
    """Writes rows as a service's save does."""
    await database.autocommit.execute(*Statement(INSERT_OUTBOX).bind(outbox_values(rows)))


async def announce_message(database: Database, message: Message, aggregate_id: str) -> None:
    """Writes one event."""
    await store(database, [OutboxRow(aggregate_id, 1, message, NOON)])


@asynccontextmanager
async def relaying(url: str, bus: Bus) -> AsyncIterator[Relay]:
    """Runs a relay, which publishes everything that can be published before it ends."""
    relay = Relay(url, bus, source="test_svc")
    task = asyncio.create_task(relay.run())
    yield relay
    relay.finish()
    await asyncio.wait_for(task, timeout=20)


@asynccontextmanager
async def consuming(
    bus: Bus, seen: Seen, database: Database, *, require: Requirement | None = None
) -> AsyncIterator[None]:
    """Runs a consumer."""
    stopping = asyncio.Event()
    await declare_consumer(bus.js, bus.name, seen.policies.subjects)
    consumer = Consumer(bus, seen.policies, database, require=require).run(stopping)
    task = asyncio.create_task(consumer)
    yield
    stopping.set()
    await asyncio.wait_for(task, timeout=20)


async def until(condition: Callable[[], bool]) -> None:
    """Waits until the condition holds; fails the test if it does not hold in time."""
    async with within(PATIENCE_SECONDS):
        while not condition():  # noqa: ASYNC110 - the condition depends on other processes
            await asyncio.sleep(0.02)


async def messages(server: Server, stream: str) -> list[dict[str, str]]:
    """The headers of a stream's messages."""
    client = await nats.connect(server.url)
    js = client.jetstream()
    count = (await js.stream_info(stream)).state.last_seq
    headers = [(await js.get_msg(stream, sequence)).headers or {} for sequence in range(1, count + 1)]
    await client.close()
    return headers


async def test_what_is_announced_is_handled_once_and_in_order(
    server: Server, order_database: Database, order_url: str
) -> None:
    """An event goes from the outbox through the stream to its handler, with its metadata in headers."""
    seen, order = Seen(), new_id()
    async with running(server.url) as bus, consuming(bus, seen, order_database), relaying(order_url, bus):
        await announce(order_database, order, order, order)

        await until(lambda: len(seen.orders) == 3)

    headers = await messages(server, str(EVENTS.name))
    assert len({header["Nats-Msg-Id"] for header in headers}) == 3
    assert headers[0]["ce-type"] == "gotohotel.order.v1.OrderCanceled"
    assert headers[0]["ce-subject"] == order
    assert await order_database.autocommit.fetchval("SELECT count(*) FROM outbox WHERE published_at IS NULL") == 0


async def test_nothing_is_lost_or_doubled_when_nats_is_killed(
    server: Server, order_database: Database, order_url: str
) -> None:
    """The outbox keeps the events; after the restart each event is handled once."""
    seen = Seen()
    async with running(server.url) as bus, consuming(bus, seen, order_database), relaying(order_url, bus) as relay:
        await announce(order_database, *(f"before-{n}" for n in range(50)))
        relay.wake()
        await until(lambda: len(seen.orders) > 0)
        server.kill()
        await announce(order_database, *(f"during-{n}" for n in range(50)))
        server.start()

        await until(lambda: len(seen.orders) >= 100)

    assert sorted(seen.orders) == sorted([*(f"before-{n}" for n in range(50)), *(f"during-{n}" for n in range(50))])


async def test_publishes_that_are_never_answered_give_their_places_back(server: Server) -> None:
    """Otherwise the relay would stop publishing after a few outages."""
    async with running(server.url) as bus:
        server.freeze()
        try:
            sent = await bus.publish_all([("gotohotel.order.v1.Ordered", b"", {"Nats-Msg-Id": new_id()})] * 20)
        finally:
            server.process.send_signal(signal.SIGCONT)

        assert sent == [False] * 20
        await until(lambda: bus.js.publish_async_pending() == 0)


async def test_a_connection_that_is_closed_for_good_is_noticed(server: Server) -> None:
    """If the server closes the connection for good, `lost` is set: the service ends and is started again."""
    bus = Bus(server.url, name="test_svc")
    await bus.connect(asyncio.Event())

    transport = bus.client._transport
    assert transport is not None
    transport.write(b"NONSENSE\r\n")

    await asyncio.wait_for(bus.lost.wait(), timeout=30)


async def test_an_event_that_comes_again_has_no_second_effect(
    server: Server, order_database: Database, order_url: str
) -> None:
    """The stream remembers message ids for a short time only; the inbox detects a repeated event."""
    seen = Seen()
    async with running(server.url) as bus, consuming(bus, seen, order_database), relaying(order_url, bus):
        await announce(order_database, "first")
        await until(lambda: len(seen.orders) == 1)
        header = (await messages(server, str(EVENTS.name)))[0]
        client = await nats.connect(server.url)
        payload = OrderCanceled(order_id="first", version=1).SerializeToString()
        for copy in range(100):  # the stream accepts them: their message ids differ, but the event id is the same
            headers = {**header, "Nats-Msg-Id": f"copy-{copy}"}
            await client.jetstream().publish(header["ce-type"], payload, headers=headers)
        await client.close()
        await announce(order_database, "last")

        await until(lambda: "last" in seen.orders)

    assert seen.orders == ["first", "last"]


async def test_a_poison_event_goes_to_the_dead_letters_and_blocks_nobody(
    server: Server, order_database: Database, order_url: str
) -> None:
    """The dead letter has the reason and the consumer, and the other events of the batch are handled."""
    seen = Seen()
    await announce(order_database, "good-1")
    await announce(order_database, "bad", reason="poison")
    await announce(order_database, "good-2")
    async with running(server.url) as bus, relaying(order_url, bus):
        pass
    async with running(server.url) as bus, consuming(bus, seen, order_database):
        await until(lambda: len(seen.orders) == 2)

        dead: list[dict[str, str]] = []
        async with within(20):
            while not dead:
                dead = await messages(server, str(DEAD_LETTERS.name))

    assert sorted(seen.orders) == ["good-1", "good-2"]
    assert [letter["x-dead-reason"] for letter in dead] == ["impossible: ValueError: poison"]
    assert dead[0]["x-dead-consumer"] == "test_svc"
    assert dead[0]["ce-subject"] == "bad"


async def test_an_event_that_must_not_be_believed_goes_to_the_dead_letters(
    server: Server, order_database: Database, order_url: str
) -> None:
    """However many there are, they halt nothing: the other events are handled."""

    def require(event: Any) -> None:
        if event.order_id.startswith("forged"):
            raise Untrusted("not signed")

    seen = Seen()
    await announce(order_database, "good-1", *[f"forged-{number}" for number in range(6)], "good-2")
    async with running(server.url) as bus, relaying(order_url, bus):
        await all_sent(order_database)
    async with running(server.url) as bus, consuming(bus, seen, order_database, require=require):
        await until(lambda: len(seen.orders) == 2)
        dead: list[dict[str, str]] = []
        async with within(20):
            while len(dead) < 6:
                dead = await messages(server, str(DEAD_LETTERS.name))

    assert sorted(seen.orders) == ["good-1", "good-2"]
    assert {letter["x-dead-reason"] for letter in dead} == {"untrusted: not signed"}


async def test_an_event_that_was_handled_needs_no_signature_when_it_is_published_again(
    server: Server, order_database: Database, order_url: str
) -> None:
    """Its guest's data may have been erased meanwhile, and the signature does not fit what is left."""
    erased = False

    def require(event: Any) -> None:
        if erased or event.order_id.startswith("forged"):
            raise Untrusted("not signed")

    seen = Seen()
    await announce(order_database, "good")
    async with running(server.url) as bus, consuming(bus, seen, order_database, require=require):
        async with relaying(order_url, bus):
            await until(lambda: seen.orders == ["good"])
        erased = True
        client = await nats.connect(server.url)
        js = client.jetstream()
        first = await js.get_msg(str(EVENTS.name), 1)
        known = first.headers or {}
        for event_id in (known["ce-id"], "no id", new_id()):
            headers = {**known, "ce-id": event_id, "Nats-Msg-Id": new_id()}
            await js.publish(str(first.subject), first.data or b"", headers=headers)
        dead: list[dict[str, str]] = []
        async with within(20):
            while len(dead) < 2:
                dead = await messages(server, str(DEAD_LETTERS.name))
        await client.close()

    assert seen.orders == ["good"]
    assert [letter["ce-id"] for letter in dead] == ["no id", event_id]


async def test_an_untrusted_event_waits_while_the_database_is_away(
    server: Server, stack: Stack, order_database: Database, order_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Only the database knows whether it was handled before."""

    def require(_: Any) -> None:
        raise Untrusted("not signed")

    await announce(order_database, "forged")
    async with running(server.url) as bus, relaying(order_url, bus):
        await all_sent(order_database)
    async with closed(stack, order_url), running(server.url) as bus:
        async with consuming(bus, Seen(), order_database, require=require):
            await until(lambda: "1 events wait" in caplog.text)
        assert not await messages(server, str(DEAD_LETTERS.name))
    async with running(server.url) as bus, consuming(bus, Seen(), order_database, require=require):
        dead: list[dict[str, str]] = []
        async with within(20):
            while not dead:
                dead = await messages(server, str(DEAD_LETTERS.name))

    assert [letter["ce-subject"] for letter in dead] == ["forged"]


async def test_an_unreadable_event_goes_to_the_dead_letters(server: Server, order_database: Database) -> None:
    """Bytes that can't be parsed become a dead letter, because they can't be handled later either."""
    seen = Seen()
    async with running(server.url) as bus, consuming(bus, seen, order_database):
        client = await nats.connect(server.url)
        headers = {"Nats-Msg-Id": new_id(), "ce-subject": "x"}
        await client.jetstream().publish("gotohotel.order.v1.OrderCanceled", b"\xff\xff\xff", headers=headers)
        await client.close()

        dead: list[dict[str, str]] = []
        async with within(20):
            while not dead:
                dead = await messages(server, str(DEAD_LETTERS.name))

    assert dead[0]["x-dead-reason"].startswith("unreadable: DecodeError")


async def test_a_consumer_that_is_declared_otherwise_is_refused_until_it_is_mended(server: Server) -> None:
    """A consumer that differs from the declaration raises DeclarationDiffers until it is deleted and declared anew."""
    subjects = ["gotohotel.order.v1.OrderCanceled"]
    async with running(server.url) as bus:
        await bus.js.add_consumer("EVENTS", durable_name="test_svc", filter_subjects=subjects, max_deliver=3)

        with pytest.raises(DeclarationDiffers, match="max_deliver"):
            await declare_consumer(bus.js, bus.name, subjects)
        await bus.js.delete_consumer("EVENTS", "test_svc")
        await declare_consumer(bus.js, bus.name, subjects)


async def test_operational_settings_are_brought_up_to_date_in_place(server: Server) -> None:
    """A consumer with the settings of the release before is updated, not refused."""
    subjects = ["gotohotel.order.v1.OrderCanceled"]
    async with running(server.url) as bus:
        before = ConsumerConfig(
            durable_name="test_svc",
            filter_subjects=subjects,
            ack_policy=AckPolicy.EXPLICIT,
            ack_wait=30,
            max_ack_pending=1000,
            max_deliver=-1,
        )
        await bus.js.add_consumer("EVENTS", before)

        await declare_consumer(bus.js, bus.name, subjects)

        config = (await bus.js.consumer_info("EVENTS", "test_svc")).config
        assert (config.ack_wait, config.max_ack_pending) == (streams.ACK_WAIT_SECONDS, streams.MAX_UNACKNOWLEDGED)


async def test_two_releases_share_a_subscription(server: Server, order_database: Database, order_url: str) -> None:
    """The newer one extends it; the older one continues, and hands back events that only the newer one knows."""
    older, newer = Seen(), Seen()
    expired: list[str] = []
    newer.policies.whenever(OrderExpired)(lambda event, _: expired.append(event.order_id))
    async with running(server.url) as bus, running(server.url) as newer_bus, relaying(order_url, bus):  # noqa: SIM117
        async with consuming(bus, older, order_database):
            await announce(order_database, "before")
            await until(lambda: older.orders == ["before"])
            assert await declare_consumer(newer_bus.js, newer_bus.name, newer.policies.subjects) == [
                "gotohotel.order.v1.OrderExpired"
            ]
            # Only the older one runs. An event that it does not know must not be lost, stop it or become a dead letter.
            await announce_message(order_database, OrderExpired(order_id="x", version=1), "x")
            await announce(order_database, "meanwhile")
            await until(lambda: older.orders == ["before", "meanwhile"])
            assert (
                await declare_consumer(bus.js, bus.name, older.policies.subjects) == []
            )  # as after a restart: a superset is accepted

            async with consuming(newer_bus, newer, order_database):
                await until(lambda: expired == ["x"])

    assert await messages(server, str(DEAD_LETTERS.name)) == []


async def test_a_release_that_cannot_handle_events_keeps_them(
    server: Server, order_database: Database, order_url: str
) -> None:
    """After some failures in a row the consumer halts and makes no dead letters. A fixed release handles the rest."""
    names = [f"o-{number}" for number in range(30)]
    bad, good = Seen(), Seen()
    bad.policies.whenever(OrderCanceled)(_a_bug)
    async with running(server.url) as bus, relaying(order_url, bus):
        await announce(order_database, *names)
    async with running(server.url) as bus:
        await declare_consumer(bus.js, bus.name, bad.policies.subjects)
        failing = Consumer(bus, bad.policies, order_database)
        for _ in range(2):  # the second run halts as well
            with pytest.raises(ConsumerHalted):
                async with within(8):
                    await failing.run(asyncio.Event())
        assert not failing.has_handled
    dead = [letter["ce-subject"] for letter in await messages(server, str(DEAD_LETTERS.name))]
    assert len(dead) == MAX_POISONED_IN_A_ROW - 1

    async with running(server.url) as bus, consuming(bus, good, order_database):
        await until(lambda: len(good.orders) == 30 - len(dead))

    assert sorted([*good.orders, *dead]) == sorted(names)


async def test_an_event_without_personal_data_goes_to_new_services_only(
    server: Server, order_database: Database
) -> None:
    """Those that have handled the original are named; without names it goes to nobody."""
    seen = Seen()
    async with running(server.url) as bus, consuming(bus, seen, order_database):
        for order, handled_by in (("old", f"{bus.name},order_svc"), ("new", "order_svc"), ("nobody", None)):
            headers = {"ce-id": new_id(), "ce-subject": order, REDRIVE_FOR: NOBODY}
            event = OrderCanceled(order_id=order, version=1)
            await bus.js.publish(
                event.DESCRIPTOR.full_name,
                event.SerializeToString(),
                headers={**headers, HANDLED_BY: handled_by} if handled_by else headers,
            )
        await bus.js.publish(
            event.DESCRIPTOR.full_name,
            OrderCanceled(order_id="last", version=1).SerializeToString(),
            headers={"ce-id": new_id(), "ce-subject": "last"},
        )
        await until(lambda: "last" in seen.orders)
    assert seen.orders == ["new", "last"]


async def test_many_bad_events_of_one_order_do_not_stop_the_others(
    server: Server, order_database: Database, order_url: str
) -> None:
    """Failures of a single order do not halt the consumer."""
    seen = Seen()
    await announce(order_database, *["bad"] * 8, reason="poison")
    async with running(server.url) as bus, relaying(order_url, bus), consuming(bus, seen, order_database):
        async with within(30):
            while len(await messages(server, str(DEAD_LETTERS.name))) < 8:  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        await announce(order_database, "good")
        await until(lambda: seen.orders == ["good"])


def _a_bug(_: OrderCanceled, __: list[str]) -> None:
    raise AttributeError("a bug")


async def test_a_value_that_fits_no_column_is_poison(server: Server, order_database: Database, order_url: str) -> None:
    """It becomes a dead letter instead of being retried forever, and the reason does not contain the value."""
    seen = Seen()

    @asynccontextmanager
    async def open_work(connection: Connection, _: Sequence[ReceivedEvent]) -> AsyncIterator[list[str]]:
        work: list[str] = []
        yield work
        await connection.fetch("SELECT $1::uuid[]", work)
        seen.orders += work

    seen.policies._open_work = open_work
    order = new_id()
    await announce(order_database, "no-uuid")
    await announce(order_database, order)
    async with running(server.url) as bus, relaying(order_url, bus), consuming(bus, seen, order_database):
        await until(lambda: seen.orders == [order])
        async with within(20):
            while not (letters := await messages(server, str(DEAD_LETTERS.name))):
                pass

    (letter,) = letters
    assert letter["ce-subject"] == "no-uuid"
    assert "no-uuid" not in letter["x-dead-reason"]


async def test_a_later_event_waits_for_an_earlier_one(server: Server, order_database: Database, order_url: str) -> None:
    """If an event can't be published, later events of the same aggregate wait. Other aggregates are not affected."""
    blocked, other = sorted((new_id(), new_id()))  # the batch is in this order
    nowhere = "UPDATE outbox SET type = $2 WHERE aggregate_id = $1 AND aggregate_version = 1"
    async with running(server.url) as bus:
        await announce(order_database, blocked, blocked, other)
        await order_database.autocommit.execute(nowhere, blocked, "a.subject.of.no.stream")
        relay = Relay(order_url, bus, source="test_svc")
        task = asyncio.create_task(relay.run())
        async with within(30):
            while not (sent := await messages(server, str(EVENTS.name))):
                pass
        held_back = [header for header in sent if header["ce-subject"] == blocked]
        await order_database.autocommit.execute(nowhere, blocked, "gotohotel.order.v1.OrderCanceled")
        relay.finish()
        await asyncio.wait_for(task, timeout=20)

    assert held_back == []
    assert [header["ce-subject"] for header in await messages(server, str(EVENTS.name))] == [other, blocked, blocked]


async def test_a_version_is_announced_once(order_database: Database) -> None:
    """If two writers store the same version of an aggregate, the second one fails."""
    await announce(order_database, "a")

    with pytest.raises(asyncpg.UniqueViolationError):
        await announce(order_database, "a")


async def test_a_stream_that_is_nearly_full_is_reported_and_may_be_given_room(
    server: Server, order_database: Database, order_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The operator decides on the size of the stream; services accept a smaller or larger one than they declare."""
    async with running(server.url) as bus:
        async with relaying(order_url, bus):
            await announce(order_database, "a", "b", "c")
        await bus.watch_the_stream()
        assert caplog.messages == []
        await _limit(server, lambda stream: stream.state.bytes + 1)
        await bus.watch_the_stream()
    assert "the stream EVENTS is 100 % full" in caplog.text

    for size in (int(EVENTS.max_bytes or 0) // 2, 2 * int(EVENTS.max_bytes or 0)):
        await _limit(server, lambda _, size=size: size)  # type: ignore[misc]
        async with running(server.url):
            pass


async def test_a_first_look_at_the_stream_before_nats_is_there_is_no_error(server: Server) -> None:
    """The job that watches the stream may run before the connection is open."""
    await Bus(server.url, name="test_svc").watch_the_stream()


async def _limit(server: Server, max_bytes: Callable[[Any], int]) -> None:
    client = await nats.connect(server.url)
    js = client.jetstream()
    stream = await js.stream_info(str(EVENTS.name))
    await js.update_stream(stream.config.evolve(max_bytes=max_bytes(stream)))
    await client.close()


async def test_one_relay_of_two_is_at_work(server: Server, order_database: Database, order_url: str) -> None:
    """When the relay with the lock ends, the other one gets the lock."""
    async with running(server.url) as bus:
        async with relaying(order_url, bus):
            first = Relay(order_url, bus, source="test_svc")
            waiting = asyncio.create_task(first.run())
            await announce(order_database, "a")

        await announce(order_database, "b")
        unsent = 1
        async with within(20):
            while unsent:
                unsent = await order_database.autocommit.fetchval(
                    "SELECT count(*) FROM outbox WHERE published_at IS NULL"
                )
        first.finish()
        await waiting

    assert len(await messages(server, str(EVENTS.name))) == 2


LOCKER = """
SELECT wait_event
FROM pg_stat_activity
JOIN pg_locks USING (pid)
WHERE locktype = 'advisory'
  AND objid = $1
  AND datname = current_database()
"""
END_LOCKER = LOCKER.replace("wait_event", "pg_terminate_backend(pid)", 1)


async def all_sent(database: Database, *, but: int = 0) -> None:
    """Waits until at most `but` events are not published yet."""
    count = "SELECT count(*) FROM outbox WHERE published_at IS NULL"
    async with within(9):
        while await database.autocommit.fetchval(count) > but:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def test_an_event_that_is_not_noted_as_published_is_in_the_stream_once(
    server: Server, order_database: Database, order_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is published is noted with the next look into the outbox. If the relay loses its session before, it
    publishes the event again, with the same id.
    """
    monkeypatch.setattr(outbox, "GATHER_SECONDS", 2.0)
    async with running(server.url) as bus, relaying(order_url, bus):
        await announce(order_database, "a")
        async with within(PATIENCE_SECONDS):
            while not await messages(server, str(EVENTS.name)):
                pass
        unsent = "SELECT count(*) FROM outbox WHERE published_at IS NULL"
        assert await order_database.autocommit.fetchval(unsent) == 1
        await order_database.autocommit.execute(END_LOCKER, RELAY_LOCK)
        await all_sent(order_database)

    assert len(await messages(server, str(EVENTS.name))) == 1


async def test_an_event_is_sent_once(server: Server, order_database: Database, order_url: str) -> None:
    """The statement that notes what is published does not return it once more; the stream would drop the copies, but
    they cost as much as events.
    """
    sent: list[str] = []
    async with running(server.url) as bus:
        publish_all = bus.publish_all

        async def note(messages: Sequence[tuple[str, bytes, dict[str, str]]]) -> list[bool]:
            sent.extend(header["ce-id"] for _, _, header in messages)
            return await publish_all(messages)

        bus.publish_all = note  # type: ignore[method-assign]
        async with relaying(order_url, bus):
            await announce(order_database, "a", "b", "a", "a", "c")
            await all_sent(order_database)

    assert len(sent) == len(set(sent)) == 5


async def test_a_relay_that_is_not_let_in_goes_on(
    stack: Stack, server: Server, order_database: Database, order_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The server answers, but refuses the connection. The relay tries again and does not end its service."""
    await announce(order_database, "a")
    async with running(server.url) as bus, AsyncExitStack() as resources:
        async with closed(stack, order_url):
            await resources.enter_async_context(relaying(order_url, bus))
            await until(lambda: "the database is away" in caplog.text)
        await all_sent(order_database)


async def test_a_relay_that_cannot_publish_hands_over(server: Server, order_database: Database, order_url: str) -> None:
    """If NATS does not answer the relay that holds the lock, another relay takes over."""
    deaf = Server()
    try:
        async with running(deaf.url) as cut_off, running(server.url) as healthy:
            first = Relay(order_url, cut_off, source="test_svc")
            holder = asyncio.create_task(first.run())
            await announce(order_database, "a")
            await all_sent(order_database)
            deaf.freeze()
            second = Relay(order_url, healthy, source="test_svc")
            waiting = asyncio.create_task(second.run())
            await announce(order_database, "b")

            await all_sent(order_database)

            deaf.process.send_signal(signal.SIGCONT)
            first.finish()
            second.finish()
            await asyncio.wait_for(asyncio.gather(holder, waiting), timeout=20)
    finally:
        deaf.process.send_signal(signal.SIGCONT)
        deaf.kill()
        shutil.rmtree(deaf.folder)
    assert [header["ce-subject"] for header in await messages(server, str(EVENTS.name))] == ["b"]


FROZEN_RELAY = """
import asyncio, os, signal, sys
import asyncpg
from gotohotel import outbox
from gotohotel.database import SESSION

async def main() -> None:
    # Otherwise, if the kernel takes a few more bytes, the server may notice the statement's timeout, and then end the
    # session because it is idle: another guard than the one that is tested.
    session = {**SESSION, **outbox.RELAY_SESSION, "statement_timeout": "0"}
    connection = await asyncpg.connect(sys.argv[1], server_settings=session)
    assert await connection.fetchval("SELECT pg_try_advisory_lock($1)", outbox.RELAY_LOCK)
    print("locked", flush=True)
    if sys.argv[2] == "reading":
        asyncio.get_running_loop().call_later(0.1, os.kill, os.getpid(), signal.SIGSTOP)
        await connection.fetch("SELECT repeat('x', 100000) FROM generate_series(1, 100000)")
    os.kill(os.getpid(), signal.SIGSTOP)

asyncio.run(main())
"""


async def the_locker_waits(database: Database, event: str) -> None:
    """Waits until the session that has the relay's lock waits for this event."""
    async with within(PATIENCE_SECONDS):
        while await database.autocommit.fetchval(LOCKER, RELAY_LOCK) != event:  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("frozen_while", ["idle", "reading"])
async def test_the_lock_of_a_frozen_relay_passes_on(
    server: Server, order_database: Database, order_url: str, frozen_while: str
) -> None:
    """Nobody has to end its session by hand, whether it is idle or has read half of a result."""
    command = [sys.executable, "-c", FROZEN_RELAY, order_url, frozen_while]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as frozen:  # noqa: ASYNC220
        try:
            assert frozen.stdout is not None
            assert frozen.stdout.readline() == "locked\n"
            await until(lambda: psutil.Process(frozen.pid).status() == psutil.STATUS_STOPPED)
            await the_locker_waits(order_database, "ClientRead" if frozen_while == "idle" else "ClientWrite")
            async with running(server.url) as bus, relaying(order_url, bus):
                await announce(order_database, "a")
                await all_sent(order_database)
        finally:
            frozen.kill()


async def test_calls_run_while_a_backlog_is_published(server: Server) -> None:
    """The event loop comes to other tasks between two parts of the batch."""
    async with running(server.url) as bus:
        await bus.publish_all([("gotohotel.order.v1.Ordered", b"", {"Nats-Msg-Id": new_id()})])  # subscribed to replies
        publish, published, seen = bus.js.publish_async, 0, set()

        async def count(*arguments: Any, **named: Any) -> Any:
            nonlocal published
            published += 1
            return await publish(*arguments, **named)

        async def watch() -> None:
            while published < outbox.BATCH_SIZE:
                seen.add(published)
                await asyncio.sleep(0)

        bus.js.publish_async = count  # type: ignore[method-assign]
        batch = [("gotohotel.order.v1.Ordered", b"", {"Nats-Msg-Id": new_id()}) for _ in range(outbox.BATCH_SIZE)]
        async with within(10):
            sent, _ = await asyncio.gather(bus.publish_all(batch), watch())

    assert all(sent)
    assert len(seen) >= 10


async def test_an_event_that_is_too_large_holds_up_no_other_order(
    server: Server, order_database: Database, order_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It stays in the outbox and is retried, while the events of other orders are published."""
    await announce(order_database, "a-too-large", reason="x" * 1_100_000)
    await announce(order_database, "b")
    async with running(server.url) as bus:
        relay = Relay(order_url, bus, source="test_svc")
        task = asyncio.create_task(relay.run())
        await all_sent(order_database, but=1)
        await until(lambda: caplog.text.count("larger than NATS takes") > 2)
        assert bus.js.publish_async_pending() == 0
        task.cancel()
        await asyncio.wait([task])

    assert [header["ce-subject"] for header in await messages(server, str(EVENTS.name))] == ["b"]
