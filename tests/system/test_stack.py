"""The embedded stack: `make up` and the other commands that operate it.

Long because every way in which a command can be misused has a test.
"""

import asyncio
import dataclasses
import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import asyncpg
import nats
import psutil
import pytest
from nats.aio.client import Client as NatsClient

import gotohotel as gotohotel_package
from ops import postgres, services
from ops.configuration import KAKAO, PROCESSES
from ops.errors import StackError
from ops.ports import accepts
from ops.settings import MAX_HOME_LENGTH
from ops.stack import Stack
from ops.supervision import Supervisor
from tests.command_line import gotohotel, separately
from tests.conftest import ROOT, Client, Hotel, wait_for


@pytest.fixture
def home() -> Iterator[Path]:
    """A folder with a short path, because it contains a socket."""
    folder = Path(tempfile.mkdtemp(prefix="gotohotel-"))
    yield folder
    shutil.rmtree(folder)


def test_data_survives_down_and_up_beside_another_stack(
    hotel: Hotel, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second stack has its own folder, ports and data, and its orders are still there after a restart."""
    second = Stack.on_free_ports(home)
    try:
        assert "The gateway answers at" in gotohotel(second, "up").stdout
        guest = Client(second, subject="alice", role="guest")
        order = guest.post("/orders", {"name": "A", "roomType": "Prime", "cardNo": "4242424242424242"})
        guest.close()
        assert gotohotel(second, "up").returncode == 0  # it runs already: nothing to do
        with monkeypatch.context() as newer:  # a release with one more service finds this stack running
            newer.setitem(PROCESSES, "review_svc", "nats")
            newer.setattr(Stack, "_migrate", lambda _: pytest.fail("migrated under running services"))
            with pytest.raises(StackError, match="without review_svc"):
                second.up()
            second.down()
        assert {line.split()[1] for line in gotohotel(second, "status").stdout.splitlines()[1:]} == {"STOPPED"}

        assert gotohotel(second, "up").returncode == 0
        token = gotohotel(second, "token", "--sub", "alice").stdout.strip()
        guest = Client(second, subject="alice", role="guest")
        headers = {"Authorization": f"Bearer {token}"}
        kept = guest.request("GET", f"/orders/{order['id']}", headers=headers)
        guest.close()

        assert kept.json()["status"] == "PAID"
        assert hotel.desk.request("GET", f"/orders/{order['id']}").status_code == 404
        assert gotohotel(second, "audit").returncode == 0
        kill_the_supervisor(second)
    finally:
        gotohotel(second, "down")


def kill_the_supervisor(stack: Stack) -> None:
    """Its processes live on: `status` says so, `up` starts no second stack on the same data, and `down` ends them."""
    supervisor = int((stack.home / "supervisord.pid").read_text())
    os.kill(supervisor, signal.SIGKILL)
    wait_for(lambda: not psutil.pid_exists(supervisor) or psutil.Process(supervisor).status() == "zombie")

    states = {line.split()[1] for line in gotohotel(stack, "status").stdout.splitlines()[1:]}
    again = gotohotel(stack, "up")
    assert states == {"ORPHANED"}
    assert "run `make down` first" in again.stderr
    assert gotohotel(stack, "down").returncode == 0

    assert not accepts(stack.ports["postgres"])
    assert not accepts(stack.ports["gateway"])


def test_status_shows_every_process(hotel: Hotel) -> None:
    """`status` prints name, state, pid and port of each."""
    lines = gotohotel(hotel.stack, "status").stdout.splitlines()[1:]

    assert [line.split()[:2] for line in lines] == [[name, "RUNNING"] for name in (*PROCESSES, KAKAO)]
    assert all(line.split()[2].isdigit() and line.split()[3].isdigit() for line in lines)


def test_only_the_gateway_and_nats_interrupt_other_processes(hotel: Hotel) -> None:
    """The others run under Linux's SCHED_BATCH, with all threads and PostgreSQL's sessions."""
    is_linux = hasattr(os, "SCHED_BATCH")  # on macOS the policy can't be chosen
    batch, normal = (os.SCHED_BATCH, os.SCHED_OTHER) if is_linux else (None, None)
    for name, _, pid, _ in hotel.stack.status():
        assert pid, f"{name} does not run"
        process, found = psutil.Process(pid), set()
        for each in (*(thread.id for thread in process.threads()), *(child.pid for child in process.children())):
            with suppress(ProcessLookupError):  # it has just ended
                found.add(os.sched_getscheduler(each) if is_linux else None)
        assert found == {normal if name in ("envoy", "nats") else batch}, name


SESSIONS = """
SELECT application_name, bool_and(client_addr IS NULL) AS through_the_socket
FROM pg_stat_activity
WHERE application_name <> ALL('{"", test}')
GROUP BY application_name
"""


async def test_services_reach_postgresql_through_a_socket(hotel: Hotel) -> None:
    """It costs less than TCP. Other users may not look into its folder; the longest permitted home has room for it."""
    sessions = await asyncpg.connect(hotel.stack.database_url("postgres", "postgres"))
    try:
        found = {row["application_name"]: row["through_the_socket"] for row in await sessions.fetch(SESSIONS)}
    finally:
        await sessions.close()

    assert found == dict.fromkeys((*services.SERVICES, "sandbox processor"), True)
    assert stat.S_IMODE(hotel.stack.database_sockets.stat().st_mode) == 0o700
    sockets = Stack(Path("/" + "x" * (MAX_HOME_LENGTH - 1)), hotel.stack.ports).database_sockets
    assert len(str(sockets / ".s.PGSQL.65535")) <= 107


def test_the_folder_of_the_socket_is_closed_at_each_start(tmp_path: Path) -> None:
    """Its owner may have put a link to a file there; that file stays whose it is."""
    precious, folder = tmp_path / "precious", tmp_path / "pg"
    precious.touch()
    folder.mkdir(mode=0o755)
    (folder / "link").symlink_to(precious)

    postgres.make_socket_folder(folder)

    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert precious.stat().st_uid == os.geteuid()


async def test_a_home_may_have_any_permitted_name(home: Path, hotel: Hotel) -> None:
    """The name goes into a URL, where a plus sign means a blank."""
    same = home / "c++=@:~"
    same.symlink_to(hotel.stack.home)
    elsewhere = dataclasses.replace(hotel.stack, home=same)
    connection = await asyncpg.connect(elsewhere.database_url("order_svc", "order_svc", caller="order_svc"))
    await connection.close()


def test_a_taken_port_is_one_clear_sentence(home: Path) -> None:
    """The message names the port and the setting, and no process is left running."""
    stack = Stack.on_free_ports(home)
    with socket.socket() as other:
        other.bind(("127.0.0.1", stack.ports["gateway"]))
        other.listen()

        done = gotohotel(stack, "up")

    assert done.returncode == 1
    assert done.stderr.strip() == (
        f"gotohotel: Port {stack.ports['gateway']} for envoy is in use; set GOTOHOTEL_GATEWAY_PORT to a free one."
    )
    assert not stack.is_up


@pytest.mark.parametrize("port", ["http", "0", "70000", "-1"])
def test_a_bad_port_is_one_clear_sentence(hotel: Hotel, port: str) -> None:
    """The message names the setting, the permitted range and the value."""
    done = gotohotel(hotel.stack, "status", GOTOHOTEL_NATS_PORT=port)

    assert done.returncode == 1
    assert (
        done.stderr.strip() == f"gotohotel: The setting GOTOHOTEL_NATS_PORT takes a port from 1 to 65535, not {port!r}."
    )


@pytest.mark.parametrize("home", ["/x/a b", "/x/a%h", "/etc/passwd", "/x/" + "x" * 300, "/x/" + "x" * 120])
def test_a_home_that_cannot_be_is_one_clear_sentence(hotel: Hotel, home: str) -> None:
    """In Supervisor's configuration blanks and % have a special meaning, and the path of a socket must be short."""
    done = gotohotel(hotel.stack, "up", GOTOHOTEL_HOME=home, GOTOHOTEL_GATEWAY_PORT="1")

    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1
    assert "GOTOHOTEL_HOME" in done.stderr


def test_a_port_that_is_set_twice_is_one_clear_sentence(home: Path) -> None:
    """The message names both settings."""
    stack = Stack.on_free_ports(home)
    same = Stack(stack.home, {**stack.ports, "pay": stack.ports["order"]})

    done = gotohotel(same, "up")

    assert done.returncode == 1
    assert "GOTOHOTEL_ORDER_PORT and GOTOHOTEL_PAY_PORT" in done.stderr


def test_a_process_that_is_stopped_twice_at_once_stops(hotel: Hotel) -> None:
    """The second command waits for the first one's end."""
    with ThreadPoolExecutor() as pool:
        done = list(pool.map(lambda _: separately(hotel.stack, "stop", "reservation_svc"), range(2)))
    hotel.stack.start("reservation_svc")

    assert [each.returncode for each in done] == [0, 0], done


def test_what_somebody_else_has_just_done_to_a_process_counts_as_done(hotel: Hotel) -> None:
    """Between the look at a process and the command to stop or start it, another command may have done so."""

    class Late(Supervisor):
        def call(self, name: str, *arguments: Any) -> Any:
            if name in ("stopProcess", "startProcess"):
                super().call(name, arguments[0], True)
            return super().call(name, *arguments)

    late = Late(hotel.stack.home)
    try:
        late.stop("reservation_svc")
        assert not late.is_started("reservation_svc")
        late.start("reservation_svc")
        assert late.is_started("reservation_svc")
    finally:
        hotel.stack.start("reservation_svc")


def test_two_stacks_never_get_the_same_ports(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ports are free until the stack starts: meanwhile nobody else gets them."""
    monkeypatch.setattr("random.sample", lambda population, _: list(population))

    first, second = (Stack.on_free_ports(home / name) for name in ("first", "second"))

    assert not set(first.ports.values()) & set(second.ports.values())


def test_a_stack_that_is_not_up_says_so(home: Path) -> None:
    """The commands name `make up` instead of printing a traceback."""
    stack = Stack.on_free_ports(home)

    assert "run `make up` first" in gotohotel(stack, "stop", "pay_svc").stderr
    assert "run `make up` first" in gotohotel(stack, "token").stderr
    assert "run `make up` first" in gotohotel(stack, "audit").stderr


@pytest.mark.parametrize(
    "subject",
    [
        "gotohotel.pay.v1.PaymentApproved",
        "gotohotel.mypage.v1.Anything",
        "dead.order_svc",
        "$JS.API.STREAM.DELETE.EVENTS",
        "$JS.API.STREAM.PURGE.EVENTS",
        "$JS.API.STREAM.UPDATE.EVENTS",
        "$JS.API.STREAM.MSG.GET.DEAD_LETTERS",
        "$JS.API.CONSUMER.MSG.NEXT.EVENTS.order_svc",
        "$JS.API.CONSUMER.CREATE.EVENTS",
        "$JS.API.CONSUMER.DELETE.EVENTS.mypage_svc",
        "$JS.ACK.EVENTS.order_svc.1.1.1.1.0",
    ],
)
async def test_a_service_says_to_nats_only_what_is_its_own(hotel: Hotel, subject: str) -> None:
    """NATS refuses to publish other services' events, to use their consumers and to change a stream."""
    async with nats_as("mypage_svc", hotel) as (client, refused):
        await client.publish(subject, b"")
        said = await asyncio.wait_for(refused.get(), timeout=10)

    assert said == f"nats: permissions violation for publish to {json.dumps(subject).lower()}"


@pytest.mark.parametrize("subject", [">", "gotohotel.>", "_INBOX.>", "_INBOX.order_svc.*"])
async def test_a_service_hears_only_what_it_is_answered(hotel: Hotel, subject: str) -> None:
    """A service receives events only through its consumer; other subscriptions are refused."""
    async with nats_as("mypage_svc", hotel) as (client, refused):
        await client.subscribe(subject)
        said = await asyncio.wait_for(refused.get(), timeout=10)

    assert said == f"nats: permissions violation for subscription to {json.dumps(subject).lower()}"


@asynccontextmanager
async def nats_as(service: str, hotel: Hotel) -> AsyncIterator[tuple[NatsClient, "asyncio.Queue[str]"]]:
    """A connection with a service's own password, and the errors that the server sent to it."""
    refused: asyncio.Queue[str] = asyncio.Queue()

    async def note(error: Exception) -> None:
        await refused.put(str(error))

    client = await nats.connect(hotel.stack.nats_url(service), inbox_prefix=f"_INBOX.{service}", error_cb=note)
    try:
        await client.jetstream().stream_info("EVENTS")  # what is allowed works
        yield client, refused
    finally:
        await client.close()


def test_a_new_services_secrets_are_minted_into_an_existing_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Existing secrets stay as they are, because the existing data needs them."""
    stack = Stack.on_free_ports(tmp_path)
    stack.credentials.mint()
    before = stack.credentials.all()
    monkeypatch.setitem(services.SERVICES, "review_svc", services.Service(port=8090, has_fingerprint_key=True))

    stack.credentials.mint()

    assert before.items() <= stack.credentials.all().items()
    new = {"review_svc", "review_svc_owner", "review_svc_nats", "review_svc_fingerprint"}
    assert set(stack.credentials.all()) - set(before) == new
    assert (tmp_path / "secrets.json").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("lost", ["postgres", "order_svc", "order_svc_fingerprint", "operator_nats"])
def test_a_secret_that_is_lost_is_not_replaced(tmp_path: Path, lost: str) -> None:
    """A new password would not open the data, and a new key would not recognise a repeated request."""
    stack = Stack.on_free_ports(tmp_path)
    stack.credentials.mint()
    kept = {name: value for name, value in stack.credentials.all().items() if name != lost}
    (tmp_path / "secrets.json").write_text(json.dumps(kept))

    with pytest.raises(StackError, match=f"lacks {lost}"):
        Stack.on_free_ports(tmp_path).credentials.mint()

    assert json.loads((tmp_path / "secrets.json").read_text()) == kept


def test_secrets_that_are_damaged_or_gone_are_one_clear_sentence(tmp_path: Path) -> None:
    """No traceback, and no new secrets beside existing data."""
    stack = Stack.on_free_ports(tmp_path)
    (tmp_path / "secrets.json").write_text("{")
    for use in (stack.credentials.all, stack.credentials.mint):
        with pytest.raises(StackError, match="is damaged"):
            use()
    (tmp_path / "secrets.json").unlink()
    (tmp_path / "postgres").mkdir()
    for use in (stack.credentials.all, stack.credentials.mint):
        with pytest.raises(StackError, match="is gone"):
            use()


def test_migrations_at_the_same_time_wait_for_one_another(stack: Stack) -> None:
    """Each of them succeeds."""
    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(lambda _: separately(stack, "migrate"), range(4)))

    assert [each.stderr for each in done] == [""] * 4
    assert [each.returncode for each in done] == [0] * 4


def test_a_pid_file_of_the_past_is_not_believed(home: Path) -> None:
    """After a restart of the machine the number belongs to another process."""
    (home / "supervisord.pid").write_text(str(os.getpid()))

    assert not Stack.on_free_ports(home).is_up


def test_a_supervisor_that_nobody_has_reaped_has_ended(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a container whose process 1 reaps no others, a process that has ended stays as a zombie."""
    with subprocess.Popen(["true"]) as ended:
        wait_for(lambda: psutil.Process(ended.pid).status() == psutil.STATUS_ZOMBIE)
        supervisor = Supervisor(home)
        monkeypatch.setattr(supervisor, "call", {"getPID": ended.pid, "shutdown": True}.get)

        supervisor.shut_down()


def test_a_service_gets_its_own_secrets_only(stack: Stack) -> None:
    """For example, only pay_svc gets the password of the sandbox's ledger."""
    for name in services.SERVICES:
        told = " ".join(stack.service_environment(name).values())
        held = {secret for secret, value in stack.credentials.all().items() if value in told}

        own = {name, services.nats_password(name), services.fingerprint_key(name)}
        alone = {"pay_svc": {services.SANDBOX}, "order_svc": {services.ORDER_SIGNING}}
        assert held <= own | alone.get(name, set())


def test_starting_what_runs_already_does_not_migrate_under_it(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """The running services may be of the release before."""
    monkeypatch.setattr(Stack, "_migrate", lambda _: pytest.fail("migrated under running services"))

    stack.up()


def test_migrating_again_changes_nothing(stack: Stack) -> None:
    """`gotohotel migrate` can be repeated while the services run."""
    done = gotohotel(stack, "migrate")

    assert done.stdout == "Roles, databases, schemas, streams and consumers are those of this release.\n"
    assert done.returncode == 0


def test_a_new_service_is_migrated_beside_a_stack_that_does_not_know_it(
    stack: Stack, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its secrets, roles and database are created before the restart, although the running NATS has no such user."""
    monkeypatch.setitem(services.SERVICES, "review_svc", services.Service(port=8090))
    shutil.copytree(
        ROOT / "tests" / "fifth_service" / "review_svc" / "migrations", tmp_path / "review_svc" / "migrations"
    )
    folder = Path(gotohotel_package.__file__).parents[1]
    monkeypatch.setattr(
        "ops.provisioning.service_folder", lambda name: (tmp_path if name == "review_svc" else folder) / name
    )
    try:
        stack.migrate()

        assert stack.credentials["review_svc_owner"]
        tables = "SELECT count(*) FROM information_schema.tables WHERE table_name = 'reviews'"
        assert in_database(stack, "review_svc", tables) == 1
    finally:
        for statement in ("DROP DATABASE review_svc", "DROP ROLE review_svc", "DROP ROLE review_svc_owner"):
            in_database(stack, "postgres", statement)


def in_database(stack: Stack, database: str, statement: str) -> Any:
    """Executes a statement as the server's superuser; returns one value."""

    async def fetch() -> Any:
        connection = await asyncpg.connect(stack.database_url(database, "postgres"))
        try:
            return await connection.fetchval(statement)
        finally:
            await connection.close()

    return asyncio.run(fetch())


@pytest.mark.parametrize("part", ["nats", "postgres"])
def test_a_migration_without_its_parts_says_so(stack: Stack, part: str) -> None:
    """The command reports it without a traceback and does not wait forever."""
    stack.stop(part)
    try:
        done = gotohotel(stack, "migrate")
    finally:
        stack.start(part)

    assert done.returncode == 1
    assert re.match(r"gotohotel: .*can't be reached", done.stderr), done.stderr
