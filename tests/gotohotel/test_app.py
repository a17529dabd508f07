"""Settings, errors at startup, and how a service runs and drains.

Long because each way of starting and draining has a test.
"""

import asyncio
import os
import random
import signal
import socket
import subprocess
import sys
import uuid
from contextlib import AsyncExitStack

import grpc.aio
import nats
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from gotohotel.app import App
from gotohotel.bus import connection
from gotohotel.bus.streams import EVENTS
from gotohotel.database import Database
from gotohotel.order.v1 import order_service_pb2 as pb
from gotohotel.rpc.identity import ROLE_HEADER, SUBJECT_HEADER, Caller
from gotohotel.rpc.tls import client_credentials
from gotohotel.settings import SettingRefused, Settings, read_settings
from ops import dead_letters
from ops.stack import Stack
from tests.gateways import named
from tests.gotohotel.test_bus import Seen
from tests.gotohotel.test_rpc import CANCEL, SERVICE, implementation


class RoomSettings(Settings):
    """Settings of a service that does not exist."""

    beds: int = 2


NEEDED = {
    "ROOM_PORT": "1", "ROOM_DATABASE_URL": "postgres://d", "ROOM_NATS_URL": "nats://n", "ROOM_TLS_FOLDER": "/",
}  # fmt: skip


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each field is read from PREFIX_FIELD and has its declared type."""
    for name, value in {**NEEDED, "ROOM_BEDS": "3"}.items():
        monkeypatch.setenv(name, value)

    settings = read_settings(RoomSettings, "ROOM")

    assert (settings.port, settings.beds, settings.drain_seconds) == (1, 3, 20.0)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ROOM_PORT", "eighty"),
        ("ROOM_PORT", "-5"),
        ("ROOM_BEDS", "two"),
        ("ROOM_POOL_SIZE", "0"),
        ("ROOM_DRAIN_SECONDS", "nan"),
        ("ROOM_DRAIN_SECONDS", "-1"),
        ("ROOM_LOG_LEVEL", "LOUD"),
        ("ROOM_DATABASE_URL", "d"),
        ("ROOM_DATABASE_URL", ""),
        ("ROOM_NATS_URL", "localhost:4222"),
    ],
)
def test_a_bad_setting_is_refused_by_name(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    """The message names the variable and the expected input, but not the value, which may be a secret."""
    for variable, good in NEEDED.items():
        monkeypatch.setenv(variable, good)
    monkeypatch.setenv(name, value)

    with pytest.raises(SettingRefused, match=f"The setting {name} is not valid: (Input|String) should") as refusal:
        read_settings(RoomSettings, "ROOM")

    assert f"'{value}'" not in str(refusal.value)


def test_a_misspelt_setting_is_reported(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """It would have no effect without a word. A newer release may know it, so it is no error."""
    for variable, good in {**NEEDED, "ROOM_BED": "3", "ROOM_CARD_KEY": "k"}.items():
        monkeypatch.setenv(variable, good)

    read_settings(RoomSettings, "ROOM", others=("ROOM_CARD_",))

    assert [record.getMessage() for record in caplog.records] == [
        "the setting ROOM_BED is not known, and has no effect"
    ]


def environment(stack: Stack, **changes: str) -> dict[str, str]:
    """The environment of the stack's mypage_svc, with these changes."""
    port = str(stack.ports["mypage"])
    told = {
        "MYPAGE_PORT": port,
        "MYPAGE_TLS_FOLDER": str(stack.tls_folder("mypage")),
        "MYPAGE_DATABASE_URL": stack.database_url("mypage_svc", "mypage_svc"),
        "MYPAGE_NATS_URL": stack.nats_url("mypage_svc"),
    }
    return {**os.environ, **told, **changes}


def start(**environment: str) -> subprocess.CompletedProcess[str]:
    """Runs mypage_svc until it exits."""
    command = [sys.executable, "-m", "mypage_svc"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


def test_a_missing_setting_is_one_clear_sentence(stack: Stack) -> None:
    """The message is for an operator: it names the setting and has no traceback."""
    told = environment(stack)
    del told["MYPAGE_NATS_URL"]

    done = start(**told)

    assert done.returncode == 1
    assert done.stderr.strip() == "mypage_svc: The setting MYPAGE_NATS_URL is missing."


def test_a_taken_port_is_one_clear_sentence(stack: Stack) -> None:
    """The message names the port, which the stack's own mypage_svc uses."""
    done = start(**environment(stack))

    assert done.returncode == 1
    assert f"port {stack.ports['mypage']}" in done.stderr
    assert "Address already in use" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_unreachable_database_is_one_clear_sentence(stack: Stack) -> None:
    """The message is one line and does not contain the password."""
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        url = f"postgresql://me:secret@127.0.0.1:{nobody.getsockname()[1]}/mypage_svc"

        done = start(**environment(stack, MYPAGE_DATABASE_URL=url))

    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1
    assert "mypage_svc can't start" in done.stderr
    assert "secret" not in done.stderr


def test_a_schema_without_a_migration_of_this_release_is_one_clear_sentence(stack: Stack, scratch_url: str) -> None:
    """The service can't change the schema, so it names the missing migrations and the command that applies them."""
    done = start(**environment(stack, MYPAGE_DATABASE_URL=scratch_url))

    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1
    assert "mypage_svc: the schema lacks gotohotel/0001_" in done.stderr
    assert "mypage_svc/0001_" in done.stderr
    assert "run `gotohotel migrate`" in done.stderr


def test_sigterm_drains_and_ends_with_status_0(stack: Stack) -> None:
    """A second replica on the same database starts, drains on SIGTERM and exits with status 0."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-m", "mypage_svc"]
    told = environment(stack, MYPAGE_PORT=port)
    with subprocess.Popen(command, env=told, stderr=subprocess.PIPE, text=True) as replica:
        assert replica.stderr is not None
        line = ""
        while "serves on port" not in line:
            line = replica.stderr.readline()
            assert line, "the service ended before it served"

        replica.send_signal(signal.SIGTERM)
        rest = replica.stderr.read()

        assert replica.wait(timeout=30) == 0
    assert "has stopped" in rest


async def test_a_loop_that_fails_ends_the_service_but_no_call(
    stack: Stack, order_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the relay fails, calls that are under way are completed and answered before the service ends."""
    under_way = asyncio.Event()

    async def slow(_: pb.CancelOrderRequest, __: Caller) -> pb.Order:
        under_way.set()
        await asyncio.sleep(0.3)
        return pb.Order(id="done")

    async def broken() -> None:
        await under_way.wait()
        raise RuntimeError("a bug")

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = Settings(
        port=port, database_url="postgres://x", nats_url=stack.nats_url("pay_svc"), tls_folder=stack.tls_folder("pay")
    )
    app = App(settings, order_database, AsyncExitStack(), name="pay_svc")
    app.serve(SERVICE, implementation(slow))
    monkeypatch.setattr(app._relay, "run", broken)
    running = asyncio.create_task(app.run())
    async with channel_to(stack, port) as channel:
        cancel = channel.unary_unary(
            CANCEL,
            request_serializer=pb.CancelOrderRequest.SerializeToString,
            response_deserializer=pb.Order.FromString,
        )
        identity = ((SUBJECT_HEADER, "alice"), (ROLE_HEADER, "guest"))
        answer = await cancel(pb.CancelOrderRequest(order_id="1"), metadata=identity, timeout=10, wait_for_ready=True)

    assert answer.id == "done"
    with pytest.raises(RuntimeError, match="a bug"):
        await asyncio.wait_for(running, timeout=30)


def an_app(stack: Stack, database: Database, url: str, *, nats_user: str = "pay_svc") -> App:
    """A service without RPCs, with a job that runs all the time."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = Settings(
        port=port, database_url=url, nats_url=stack.nats_url(nats_user), tls_folder=stack.tls_folder("pay"),
        notice_seconds=0,
    )  # fmt: skip
    app = App(settings, database, AsyncExitStack(), name=nats_user)

    async def job() -> None:
        await database.autocommit.fetchval("SELECT 1")

    app.every(0.001, job)
    return app


async def test_a_service_drains_again_and_again(stack: Stack, order_database: Database, order_url: str) -> None:
    """Of two hundred drains at random moments, none hangs."""
    chance = random.Random(1)
    for _ in range(200):
        app = an_app(stack, order_database, order_url)
        running = asyncio.create_task(app.run())
        await asyncio.sleep(chance.uniform(0, 0.05))
        app._stopping.set()
        async with asyncio.timeout(15):
            await running


async def test_not_serving_is_taken_back_when_the_difference_is_mended(
    stack: Stack, order_database: Database, order_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once the consumer's declaration is corrected, the service is SERVING without a restart."""
    monkeypatch.setattr("gotohotel.app.DECLARATION_SECONDS", 0.2)
    client = await nats.connect(stack.nats_url())
    js = client.jetstream()
    name, subject = f"mend_{uuid.uuid4().hex[:8]}", "gotohotel.order.v1.OrderCanceled"
    await js.add_consumer("EVENTS", durable_name=name, filter_subjects=[subject], max_deliver=3)
    app = an_app(stack, order_database, order_url, nats_user="operator")
    app.bus.name = name
    app.listen(Seen().policies)
    running = asyncio.create_task(app.run())
    try:
        await health_is(stack, app, "NOT_SERVING")

        await js.delete_consumer("EVENTS", name)

        await health_is(stack, app, "SERVING")
        assert (await js.consumer_info("EVENTS", name)).config.max_deliver == -1
    finally:
        app._stopping.set()
        await asyncio.wait_for(running, timeout=15)
        await js.delete_consumer("EVENTS", name)
        await client.close()
        for letter in await dead_letters.every(stack):  # of events that another test has damaged
            if letter.consumer == name:
                await dead_letters.drop(stack, letter.number)


async def test_a_service_without_a_consumer_is_serving_again_after_a_stream_was_repaired(
    stack: Stack, order_database: Database, order_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pay_svc subscribes to nothing, but it needs the stream of events as this release declares it."""
    monkeypatch.setattr("gotohotel.app.DECLARATION_SECONDS", 0.2)
    wanted = EVENTS
    monkeypatch.setattr(connection, "EVENTS", wanted.evolve(duplicate_window=300))
    app = an_app(stack, order_database, order_url, nats_user="operator")
    running = asyncio.create_task(app.run())
    try:
        await health_is(stack, app, "NOT_SERVING")

        monkeypatch.setattr(connection, "EVENTS", wanted)

        await health_is(stack, app, "SERVING")
    finally:
        app._stopping.set()
        await asyncio.wait_for(running, timeout=15)


def channel_to(stack: Stack, port: int) -> grpc.aio.Channel:
    """A channel to a pay_svc at this port, as the gateway opens it."""
    credentials = client_credentials(stack.tls_folder("gateway"))
    return grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials, options=named("pay"))


async def health_is(stack: Stack, app: App, status: str) -> None:
    """Waits until the service's health check returns this status."""
    wanted = health_pb2.HealthCheckResponse.ServingStatus.Value(status)
    async with (
        asyncio.timeout(20),
        channel_to(stack, app.settings.port) as channel,
    ):
        stub = health_pb2_grpc.HealthStub(channel)
        while (await stub.Check(health_pb2.HealthCheckRequest(), wait_for_ready=True)).status != wanted:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def test_calls_are_taken_until_all_have_seen_that_it_drains(
    stack: Stack, order_database: Database, order_url: str
) -> None:
    """While it drains, a service still answers health checks for a time, even if it subscribes to no event."""
    app = an_app(stack, order_database, order_url)
    running = asyncio.create_task(app.run())
    app.settings = app.settings.model_copy(update={"notice_seconds": 1})
    await health_is(stack, app, "SERVING")
    app._stopping.set()

    await health_is(stack, app, "NOT_SERVING")  # the call is answered, not refused

    await asyncio.wait_for(running, timeout=15)


async def test_jobs_go_on_until_the_last_call_has_ended(stack: Stack, order_database: Database, order_url: str) -> None:
    """One of the jobs renews the claims of running calls, so that nobody takes them over while the service drains."""
    app, under_way, runs_after = an_app(stack, order_database, order_url), asyncio.Event(), asyncio.Semaphore(0)

    async def job() -> None:
        if app._stopping.is_set():
            runs_after.release()

    async def slow(_: pb.CancelOrderRequest, __: Caller) -> pb.Order:
        under_way.set()
        await app._stopping.wait()
        async with asyncio.timeout(8):
            for _run in range(3):
                await runs_after.acquire()
        return pb.Order(id="done")

    app.serve(SERVICE, implementation(slow))
    app.every(0.01, job)
    running = asyncio.create_task(app.run())
    async with channel_to(stack, app.settings.port) as channel:
        cancel = channel.unary_unary(
            CANCEL,
            request_serializer=pb.CancelOrderRequest.SerializeToString,
            response_deserializer=pb.Order.FromString,
        )
        identity = ((SUBJECT_HEADER, "alice"), (ROLE_HEADER, "guest"))
        call = cancel(pb.CancelOrderRequest(order_id="1"), metadata=identity, timeout=10, wait_for_ready=True)
        await under_way.wait()
        app._stopping.set()
        answer = await call

    assert answer.id == "done"
    await asyncio.wait_for(running, timeout=15)
