"""The three questions of a supervisor: has it started, does it live, should it get calls?"""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from gotohotel.mypage.v1 import mypage_service_pb2, mypage_service_pb2_grpc
from gotohotel.rpc.health import DATABASE, LIVE, STARTED
from gotohotel.schema import migrate
from ops import ports
from ops.stack import Stack
from tests.conftest import closed, freeze, wait_for
from tests.gotohotel.test_app import environment

READY = ""  # the name that gRPC's own load balancers ask for
SERVING = health_pb2.HealthCheckResponse.SERVING
NOWHERE = "nats://127.0.0.1:1"  # what has another database must not take the stack's events
ROOT = Path(__file__).parents[2]
# Otherwise channels to one address share a connection, which may be open already.
OWN_CONNECTION = [("grpc.use_local_subchannel_pool", 1)]
# SIGUSR1 blocks the thread of the event loop, until SIGUSR2.
CAN_BLOCK = """
import runpy, signal
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
signal.signal(signal.SIGUSR1, lambda *_: signal.sigwait({signal.SIGUSR2}))
runpy.run_module("mypage_svc", run_name="__main__")
"""
MIGRATIONS = (ROOT / "gotohotel" / "migrations", ROOT / "mypage_svc" / "migrations")


@contextmanager
def running(stack: Stack, log: Path, *program: str, **changes: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A mypage_svc on ports of its own, by default in the way a chart starts it; and its health port.

    Its log is a file: a pipe that nobody reads fills, and stops the event loop.
    """
    port, health_port = ports.reserve(2)
    told = environment(stack, **{"MYPAGE_PORT": str(port), "MYPAGE_HEALTH_PORT": str(health_port), **changes})
    command = [sys.executable, *(program or ("-m", "mypage_svc"))]
    with log.open("w") as output, subprocess.Popen(command, env=told, stdout=output, stderr=output) as process:
        try:
            yield process, health_port
        finally:
            process.send_signal(signal.SIGCONT)
            process.kill()


def answers(port: int, name: str, *, seconds: float = 1.0) -> bool:
    """Whether the health port says SERVING for a name in time, as Kubernetes' gRPC probe asks."""
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        try:
            request = health_pb2.HealthCheckRequest(service=name)
            return bool(health_pb2_grpc.HealthStub(channel).Check(request, timeout=seconds).status == SERVING)
        except grpc.RpcError:
            return False


def test_a_started_service_says_yes_to_all_three_and_one_that_hangs_to_none(stack: Stack, tmp_path: Path) -> None:
    """Without a certificate, on a port where nothing else answers. A process that is stopped accepts connections all
    the same.
    """
    with running(stack, tmp_path / "log") as (process, port):
        wait_for(lambda: answers(port, STARTED))
        wait_for(lambda: answers(port, READY))

        wait_for(lambda: answers(port, LIVE))
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            pages = mypage_service_pb2_grpc.MyPageServiceStub(channel)
            with pytest.raises(grpc.RpcError, match="UNIMPLEMENTED"):
                pages.ListMyPages(mypage_service_pb2.ListMyPagesRequest(), timeout=5)

        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            watch = health_pb2_grpc.HealthStub(channel).Watch
            open_for_ever = [watch(health_pb2.HealthCheckRequest(service=LIVE)) for _ in range(100)]
            assert next(open_for_ever[-1]).status == SERVING
            assert answers(port, LIVE, seconds=5)

        freeze(process.pid)
        assert ports.accepts(port)
        frozen = grpc.insecure_channel(f"127.0.0.1:{port}", OWN_CONNECTION)
        with frozen, pytest.raises(grpc.FutureTimeoutError):
            grpc.channel_ready_future(frozen).result(timeout=1)
        assert not answers(port, LIVE)
        process.send_signal(signal.SIGCONT)
        wait_for(lambda: answers(port, LIVE))


def test_a_service_whose_event_loop_is_stuck_does_not_live(stack: Stack, tmp_path: Path) -> None:
    """Its other threads, among them gRPC's, still run."""
    with running(stack, tmp_path / "log", "-c", CAN_BLOCK) as (process, port):
        wait_for(lambda: answers(port, LIVE))

        process.send_signal(signal.SIGUSR1)
        wait_for(lambda: not answers(port, LIVE))
        assert not answers(port, READY)
        with grpc.insecure_channel(f"127.0.0.1:{port}", OWN_CONNECTION) as channel:
            grpc.channel_ready_future(channel).result(timeout=10)  # HTTP/2 is up: not so if the process is stopped

        process.send_signal(signal.SIGUSR2)
        wait_for(lambda: answers(port, LIVE))


async def test_a_service_without_its_database_lives_and_gets_no_calls(
    stack: Stack, mypage_url: str, tmp_path: Path
) -> None:
    """Another start would not help it: so it must not fail the check after which it is started again."""
    with running(stack, tmp_path / "log", MYPAGE_DATABASE_URL=mypage_url, MYPAGE_NATS_URL=NOWHERE) as (process, port):
        wait_for(lambda: answers(port, READY))
        async with closed(stack, mypage_url):
            wait_for(lambda: not answers(port, READY))
            wait_for(lambda: not answers(port, DATABASE))
            wait_for(lambda: answers(port, LIVE))
            assert process.poll() is None


async def test_a_start_waits_for_the_schema(stack: Stack, scratch_url: str, tmp_path: Path) -> None:
    """In a cluster everything starts at once. Until then it has not started; told to end, it ends at once."""
    waits = {"MYPAGE_DATABASE_URL": scratch_url, "MYPAGE_NATS_URL": NOWHERE, "MYPAGE_START_SECONDS": "60"}
    with running(stack, tmp_path / "log", **waits) as (process, port):
        wait_for(lambda: "the start waits: the schema lacks" in (tmp_path / "log").read_text())
        assert not answers(port, STARTED)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=10) == 1
        assert "was stopped before it had started" in (tmp_path / "log").read_text()

    with running(stack, tmp_path / "log", **waits) as (_, port):
        await migrate(scratch_url, *MIGRATIONS)
        wait_for(lambda: answers(port, STARTED))


def test_a_taken_health_port_is_one_clear_sentence(stack: Stack) -> None:
    """The message names it."""
    [port] = ports.reserve(1)
    taken = str(stack.ports["order"])
    told = environment(stack, MYPAGE_PORT=str(port), MYPAGE_HEALTH_PORT=taken)
    done = subprocess.run(
        [sys.executable, "-m", "mypage_svc"], env={**os.environ, **told}, capture_output=True, text=True, check=False
    )

    assert done.returncode == 1
    assert f"can't listen on 127.0.0.1:{taken}: Address already in use" in done.stderr
