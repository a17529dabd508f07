"""Migrations and transactions on real PostgreSQL."""

import asyncio
import socket
from contextlib import AsyncExitStack
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import pytest

from chaos.links import Link
from gotohotel.database import TRANSIENT, connect, open_database
from gotohotel.ids import new_id
from gotohotel.schema import migrate
from ops.stack import Stack
from tests.conftest import closed, within


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A component with two migrations."""
    return two_migrations(tmp_path)


def two_migrations(tmp_path: Path) -> Path:
    """Creates the folder of a component with two migrations."""
    migrations = tmp_path / "inn" / "migrations"
    migrations.mkdir(parents=True)
    (migrations / "0001_rooms.sql").write_text("CREATE TABLE rooms (id integer PRIMARY KEY);")
    (migrations / "0002_first.sql").write_text("INSERT INTO rooms VALUES (1);")
    return migrations


async def test_replicas_that_start_together_apply_each_migration_once(scratch_url: str, folder: Path) -> None:
    """The others wait for the first one and find nothing to do."""
    await asyncio.gather(*(migrate(scratch_url, folder) for _ in range(5)))

    connection = await asyncpg.connect(scratch_url)
    assert await connection.fetchval("SELECT count(*) FROM rooms") == 1
    assert await connection.fetchval("SELECT count(*) FROM schema_migrations") == 2
    await connection.close()


async def test_a_migration_that_fails_leaves_nothing_behind(scratch_url: str, folder: Path) -> None:
    """The statements of a migration and its number are one transaction."""
    (folder / "0003_bad.sql").write_text("INSERT INTO rooms VALUES (2); SELECT 1/0;")

    with pytest.raises(asyncpg.DivisionByZeroError):
        await migrate(scratch_url, folder)

    connection = await asyncpg.connect(scratch_url)
    assert await connection.fetchval("SELECT count(*) FROM rooms") == 1
    assert await connection.fetchval("SELECT max(number) FROM schema_migrations") == 2
    await connection.close()


async def test_after_an_outage_no_statement_gets_a_dead_connection(stack: Stack, scratch_url: str) -> None:
    """What was cut off has connections that nobody has closed: each would cost a call its time limit."""
    link = Link("test", "postgres", stack.ports["postgres"])
    await link.open()
    try:
        url = scratch_url.replace(f":{link.target_port}/", f":{link.port}/")
        async with open_database(url, name="test", pool_size=4) as database:

            async def look() -> None:
                await database.autocommit.fetchval("SELECT 1")
                await database.autocommit.fetch_one("SELECT $1::int AS one", 1, lock_order=(1,))

            await asyncio.gather(*(look() for _ in range(20)))
            dead = (link.there, link.back)
            for gate in dead:
                gate.clear()
            link.there, link.back = asyncio.Event(), asyncio.Event()  # new connections get through again
            link.there.set()
            link.back.set()
            # One call finds it out in each pool.
            for statement in (look(), database.autocommit.fetch_one("SELECT $1::int AS one", 1, lock_order=(1,))):
                with pytest.raises(TRANSIENT):
                    await statement

            await asyncio.gather(*(look() for _ in range(20)))
            for gate in dead:
                gate.set()
    finally:
        await link.close()


async def test_the_server_ends_the_sessions_of_a_client_that_is_gone(scratch_url: str) -> None:
    """A client whose machine is lost says no goodbye. The server asks for it within seconds, not after two hours;
    `make containers` shows that the sessions end.
    """
    async with open_database(scratch_url, name="test", pool_size=2) as database:
        names = ("keepalives_idle", "keepalives_interval", "keepalives_count", "user_timeout")
        shown = [await database.autocommit.fetchval(f"SHOW tcp_{name}") for name in names]

    assert shown == ["5", "2", "3", "11000" if hasattr(socket, "TCP_USER_TIMEOUT") else "0"]  # not on macOS


async def test_a_connection_of_its_own_notices_a_server_that_is_gone(scratch_url: str) -> None:
    """One that listens for notifications sends nothing: without keepalives it would wait for two hours."""
    connection = await connect(scratch_url, {})
    try:
        opened = connection._transport.get_extra_info("socket")  # type: ignore[attr-defined]
        assert opened.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    finally:
        await connection.close()


async def test_a_server_that_refuses_connections_is_away(stack: Stack, scratch_url: str) -> None:
    """The caller gets UNAVAILABLE, and the next call after that succeeds."""
    async with open_database(scratch_url, name="test", pool_size=2) as database:
        async with closed(stack, scratch_url):
            refused = []
            for _ in range(6):  # the first ones lose the connections of the pool
                with pytest.raises(TRANSIENT) as raised:
                    await database.autocommit.fetchval("SELECT 1")
                refused.append(str(raised.value))
            with pytest.raises(TRANSIENT, match="PostgreSQL refuses the connection"):
                await database.autocommit.fetch_one("SELECT 1 AS one", lock_order=())
        assert any(
            "PostgreSQL refuses the connection" in text and "not currently accepting" in text for text in refused
        )
        assert await database.autocommit.fetchval("SELECT 1") == 1
        assert (await database.autocommit.fetch_one("SELECT 1 AS one", lock_order=()))["one"] == 1


async def test_whatever_the_reason_a_refused_connection_is_an_outage(scratch_url: str) -> None:
    """Nothing was sent yet, so trying again is safe: a wrong password, a database that does not exist, a right that was
    taken away.
    """
    admin = await asyncpg.connect(scratch_url)
    name, role = await admin.fetchval("SELECT current_database()"), f"outsider_{new_id()[-12:]}"
    await admin.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'secret'; REVOKE CONNECT ON DATABASE {name} FROM PUBLIC")
    address = urlsplit(scratch_url)
    try:
        for user, password, path, reason in (
            (role, "wrong", name, "password authentication failed"),
            (role, "secret", "no_such_database", "does not exist"),
            (role, "secret", name, "permission denied"),
        ):
            url = address._replace(netloc=f"{user}:{password}@{address.hostname}:{address.port}", path=path).geturl()
            with pytest.raises(TRANSIENT, match=f"refuses the connection: .*{reason}"):
                await connect(url, {})
    finally:
        await admin.execute(f"DROP ROLE {role}")
        await admin.close()


async def test_what_fails_beside_the_statements_replaces_no_connection(scratch_url: str) -> None:
    """Inside a transaction another part may be away, such as NATS: PostgreSQL's connections are good."""
    async with open_database(scratch_url, name="test", pool_size=2) as database:
        used = set()

        async def meet_another_part() -> None:
            async with database.transaction() as connection:
                used.add(await connection.fetchval("SELECT pg_backend_pid()"))
                raise ConnectionError("NATS is not connected")

        for _ in range(10):
            with pytest.raises(ConnectionError):
                await meet_another_part()
    assert len(used) <= 2


async def test_a_transaction_is_all_or_nothing(scratch_url: str, folder: Path) -> None:
    """An exception rolls the transaction back."""
    await migrate(scratch_url, folder)
    async with open_database(scratch_url, name="test", pool_size=2) as database:

        async def fail() -> None:
            async with database.transaction() as connection:
                await connection.execute("INSERT INTO rooms VALUES (7)")
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await fail()

        assert await database.autocommit.fetchval("SELECT count(*) FROM rooms WHERE id = 7") == 0


async def test_a_migration_behind_a_long_read_holds_nobody_up(
    scratch_url: str, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The migration leaves the lock queue after a short time, and is applied when the read is over."""
    await migrate(scratch_url, folder)
    (folder / "0003_more.sql").write_text("ALTER TABLE rooms ADD COLUMN name text;")
    async with AsyncExitStack() as resources:
        reader, guest = [await asyncpg.connect(scratch_url, command_timeout=10) for _ in range(2)]
        for connection in (reader, guest):
            resources.push_async_callback(connection.close)
        await reader.execute("BEGIN")
        await reader.fetch("SELECT * FROM rooms")
        migrating = asyncio.create_task(migrate(scratch_url, folder))
        resources.push_async_callback(asyncio.wait, [migrating])
        resources.push_async_callback(reader.execute, "ROLLBACK")
        number = 1
        while caplog.text.count("waits for a lock") < 2:  # it has joined the lock queue and left it
            number += 1
            async with within(5):  # behind the migration, it would wait for the reader
                await guest.execute("INSERT INTO rooms VALUES ($1)", number)
        assert not migrating.done()

        await reader.execute("ROLLBACK")
        await asyncio.wait_for(migrating, timeout=20)

        assert await guest.fetchval("SELECT count(*) FROM rooms WHERE name IS NULL") == number


async def test_a_migration_that_never_gets_its_lock_ends_with_an_error(scratch_url: str, folder: Path) -> None:
    """After `patience_seconds` the migration raises LockNotAvailableError."""
    await migrate(scratch_url, folder)
    (folder / "0003_more.sql").write_text("ALTER TABLE rooms ADD COLUMN name text;")
    reader = await asyncpg.connect(scratch_url)
    await reader.execute("BEGIN")
    await reader.fetch("SELECT * FROM rooms")

    with pytest.raises(asyncpg.LockNotAvailableError):
        await migrate(scratch_url, folder, patience_seconds=0)

    await reader.close()


async def test_an_index_is_made_while_the_table_is_written_to(scratch_url: str, folder: Path) -> None:
    """One of the replicas builds it outside a transaction, and replaces an index whose build was interrupted."""
    await migrate(scratch_url, folder)
    connection = await asyncpg.connect(scratch_url)
    # What an interrupted CREATE INDEX CONCURRENTLY leaves behind.
    await connection.execute("CREATE INDEX rooms_number ON rooms (id)")
    await connection.execute("UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'rooms_number'::regclass")
    (folder / "0003_index.sql").write_text(
        "-- outside a transaction\n"
        "DROP INDEX CONCURRENTLY IF EXISTS rooms_number;\n"
        "CREATE INDEX CONCURRENTLY rooms_number ON rooms (id);\n"
    )

    async with asyncio.timeout(30):
        await asyncio.gather(*(migrate(scratch_url, folder) for _ in range(4)))

    valid = "SELECT indisvalid FROM pg_index WHERE indexrelid = 'rooms_number'::regclass"
    assert await connection.fetchval(valid)
    assert await connection.fetchval("SELECT max(number) FROM schema_migrations") == 3
    await connection.close()


async def test_a_commit_is_told_to_who_listens(scratch_url: str) -> None:
    """Reads, statements that change nothing and rollbacks do not call the listener."""
    told: list[str] = []
    async with open_database(scratch_url, name="test", pool_size=2) as database:
        await database.autocommit.execute("CREATE TABLE rooms (id integer)")
        database.after_commits(lambda: told.append("commit"))

        await database.autocommit.fetch("SELECT id FROM rooms")
        await database.autocommit.execute("DELETE FROM rooms")

        async def fail() -> None:
            async with database.transaction() as connection:
                await connection.execute("INSERT INTO rooms VALUES (1)")
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await fail()
        assert told == []

        await database.autocommit.execute("INSERT INTO rooms VALUES (1)")
        await database.autocommit.fetchval("UPDATE rooms SET id = 2 RETURNING id")
        async with database.transaction() as connection:
            await connection.execute("INSERT INTO rooms VALUES (3)")
        assert told == ["commit"] * 3
