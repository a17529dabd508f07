"""PostgreSQL: the pool, transactions and migrations."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import asyncpg
from asyncpg.pool import PoolConnectionProxy
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_delay, wait_random

logger = logging.getLogger(__name__)

# Errors that asyncpg raises for a broken or overloaded server. They do not mean that the statement was wrong: the same
# statement may succeed a moment later.
TRANSIENT = (
    OSError,
    TimeoutError,
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # "another operation is in progress", on a connection that has just broken
    asyncpg.TransactionRollbackError,  # includes deadlock and serialization failures
    asyncpg.InsufficientResourcesError,
    asyncpg.OperatorInterventionError,
    asyncpg.LockNotAvailableError,
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.InvalidCachedStatementError,  # a migration has changed the table meanwhile
)

MIGRATIONS_LOCK = 0x676F746F  # "goto"

# Together under three seconds: then the caller gets UNAVAILABLE.
ACQUIRE_SECONDS = 1.3
COMMAND_SECONDS = 1.2
RELEASE_SECONDS = 0.3

SESSION = {
    # The server gives up before the client does, so that abandoned statements hold no locks.
    "statement_timeout": "1100ms",
    "lock_timeout": "1s",
    "idle_in_transaction_session_timeout": "10s",
    # Every statement uses an index. By default the planner scans whole tables as long as they are new, and keeps such a
    # plan until the next ANALYZE.
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "jit": "off",
    # Planning these statements anew takes longer than running them.
    "plan_cache_mode": "force_generic_plan",
}


Row = asyncpg.Record


class Connection(Protocol):
    """What stores use: a connection inside a transaction, or the pool, where each statement is its own transaction."""

    async def fetch(self, query: str, *args: object) -> list[Row]: ...
    async def fetchrow(self, query: str, *args: object) -> Row | None: ...
    async def fetchval(self, query: str, *args: object) -> Any: ...
    async def execute(self, query: str, *args: object) -> str: ...


class _Autocommit:
    """The pool as a Connection: each statement takes a connection of its own."""

    def __init__(self, pool: "asyncpg.Pool[Row]", committed: Callable[[], None]) -> None:
        self._pool = pool
        self._committed = committed

    async def fetch(self, query: str, *args: object) -> list[Row]:
        async with _acquired(self._pool) as connection:
            rows = await connection.fetch(query, *args)
        self._note(query, bool(rows))
        return rows

    async def fetchrow(self, query: str, *args: object) -> Row | None:
        async with _acquired(self._pool) as connection:
            row = await connection.fetchrow(query, *args)
        self._note(query, row is not None)
        return row

    async def fetchval(self, query: str, *args: object) -> Any:
        async with _acquired(self._pool) as connection:
            value = await connection.fetchval(query, *args)
        self._note(query, bool(value))
        return value

    async def execute(self, query: str, *args: object) -> str:
        async with _acquired(self._pool) as connection:
            status = await connection.execute(query, *args)
        self._note(query, not status.endswith(" 0"))
        return status

    def _note(self, query: str, changed: bool) -> None:
        if changed and not query.lstrip().startswith("SELECT"):
            self._committed()


class Database:
    """A service's own database.

    Waiting for a connection, running a statement and returning the connection each have a time limit.
    """

    def __init__(self, pool: "asyncpg.Pool[Row]") -> None:
        self._pool = pool
        self._autocommit = _Autocommit(pool, self._committed)
        self._listeners: list[Callable[[], None]] = []

    def after_commits(self, listener: Callable[[], None]) -> None:
        """Registers a function that is called whenever something may have been committed here."""
        self._listeners.append(listener)

    def _committed(self) -> None:
        for listener in self._listeners:
            listener()

    @property
    def autocommit(self) -> Connection:
        """The pool; each statement is its own transaction, in one round trip."""
        return self._autocommit

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection]:
        """Opens a transaction: committed at the end, rolled back on an exception."""
        async with _acquired(self._pool) as connection, connection.transaction():
            yield connection
        self._committed()


@asynccontextmanager
async def _acquired(pool: "asyncpg.Pool[Row]") -> AsyncIterator["PoolConnectionProxy[Row]"]:
    connection = await pool.acquire(timeout=ACQUIRE_SECONDS)
    try:
        yield connection
    finally:
        # A frozen server does not even answer a cancel request: then the connection is discarded.
        await pool.release(connection, timeout=RELEASE_SECONDS)


async def _keep_session(_: object) -> None:
    """Replaces asyncpg's reset, which costs a round trip: no code here changes session state."""


@asynccontextmanager
async def open_database(url: str, *, name: str, pool_size: int) -> AsyncIterator[Database]:
    """Opens the pool. Raises OSError or asyncpg's errors if the server can't be reached."""
    pool = await asyncpg.create_pool(
        url,
        min_size=2,
        max_size=pool_size,
        timeout=3,
        command_timeout=COMMAND_SECONDS,
        reset=_keep_session,
        server_settings={"application_name": name, **SESSION},
    )
    try:
        yield Database(pool)
    finally:
        try:
            async with asyncio.timeout(5):
                await pool.close()
        except TimeoutError:
            pool.terminate()


async def delete_in_batches(database: Database, statement: str, *before: object) -> None:
    """Repeats a DELETE of at most 1000 rows until no row is left, so that no statement holds locks for long."""
    while await database.autocommit.execute(statement, *before) == "DELETE 1000":  # noqa: ASYNC110
        await asyncio.sleep(0.1)  # lets other statements run between batches


CREATE_MIGRATIONS_TABLE = """
CREATE TABLE IF NOT EXISTS schema_migrations (
    component text NOT NULL,
    number integer NOT NULL,
    name text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (component, number)
)
"""


NOTE_MIGRATION = """
INSERT INTO schema_migrations (component, number, name)
VALUES ($1, $2, $3)
"""

# A migration that waits for a table's lock makes all others queue behind it: it gives up soon and retries.
LOCK_TIMEOUT_SECONDS = 0.3
LOCK_RETRY_SECONDS = 1.0
# A replica that is frozen or disconnected in the middle of a migration loses its locks.
MIGRATION_SESSION = {
    "idle_in_transaction_session_timeout": "10s",
    "idle_session_timeout": "30s",
    "tcp_keepalives_idle": "3",
    "tcp_keepalives_interval": "1",
}
LOCK_PATIENCE_SECONDS = 300.0

# As a file's first line: its statements run one by one, outside any transaction, as CREATE INDEX CONCURRENTLY requires.
# If one fails the whole file runs again, so each statement must be safe to repeat.
OUTSIDE_TRANSACTION = "-- outside a transaction"


class SchemaBehind(Exception):
    """A schema lacks a migration of this release."""


APPLIED = """
SELECT component, number
FROM schema_migrations
"""


async def require_migrations(database: Database, *folders: Path) -> None:
    """Raises SchemaBehind unless every migration of these folders is applied.

    A service's role can't change the schema: `migrate` does, with the owner's role, before the service starts. A schema
    that is ahead, as after a rollback, is accepted.
    """
    try:
        rows = await database.autocommit.fetch(APPLIED)
    except asyncpg.UndefinedTableError:
        rows = []
    applied = {(row["component"], row["number"]) for row in rows}
    missing = [
        f"{component}/{path.name}"
        for component, number, path in _numbered(folders)
        if (component, number) not in applied
    ]
    if missing:
        raise SchemaBehind(f"the schema lacks {', '.join(missing)}; run `gotohotel migrate`")


async def migrate(url: str, *folders: Path, patience_seconds: float = LOCK_PATIENCE_SECONDS) -> None:
    """Applies the numbered SQL files that are not applied yet, each in one transaction, or in none if it begins with
    OUTSIDE_TRANSACTION. Callers that run at the same time wait for one another.

    A statement waits 0.3 s for a lock and is then retried, for `patience_seconds` in all, so that no other user of the
    table waits longer than that. Raises asyncpg.LockNotAvailableError afterwards.
    """
    connection = await asyncpg.connect(
        url, timeout=3, server_settings={"lock_timeout": f"{int(LOCK_TIMEOUT_SECONDS * 1000)}ms", **MIGRATION_SESSION}
    )
    try:
        # Polled, not waited for: CREATE INDEX CONCURRENTLY waits for every session that is waiting inside a statement.
        while not await connection.fetchval("SELECT pg_try_advisory_lock($1)", MIGRATIONS_LOCK):  # noqa: ASYNC110
            await asyncio.sleep(0.2)
        await connection.execute(CREATE_MIGRATIONS_TABLE)
        rows = await connection.fetch(APPLIED)
        applied = {(row["component"], row["number"]) for row in rows}
        for component, number, path in _numbered(folders):
            if (component, number) not in applied:
                migration = Migration(component, number, path.name, path.read_text())
                await _apply_patiently(connection, migration, patience_seconds)
                logger.info("applied migration %s/%s", component, path.name)
    finally:
        await connection.close()


@dataclass(frozen=True, slots=True)
class Migration:
    """One numbered SQL file of a component."""

    component: str
    number: int
    name: str
    sql: str


async def _apply_patiently(
    connection: "asyncpg.Connection[Row]", migration: Migration, patience_seconds: float
) -> None:
    def warn(state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        logger.warning("migration %s/%s waits for a lock: %r", migration.component, migration.name, error)

    async for attempt in AsyncRetrying(
        retry=retry_if_exception_type((asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError)),
        stop=stop_after_delay(patience_seconds),
        wait=wait_random(0.5 * LOCK_RETRY_SECONDS, 1.5 * LOCK_RETRY_SECONDS),
        before_sleep=warn,
        reraise=True,
    ):
        with attempt:
            await _apply(connection, migration)


def statements_of(sql: str) -> list[str]:
    """What is sent to the server one by one: the whole file, or each statement if no transaction is allowed."""
    return list(filter(str.strip, sql.split(";\n"))) if sql.startswith(OUTSIDE_TRANSACTION) else [sql]


async def _apply(connection: "asyncpg.Connection[Row]", migration: Migration) -> None:
    if migration.sql.startswith(OUTSIDE_TRANSACTION):
        for statement in statements_of(migration.sql):
            await connection.execute(statement)
        await connection.execute(NOTE_MIGRATION, migration.component, migration.number, migration.name)
        return
    async with connection.transaction():
        await connection.execute(migration.sql)
        await connection.execute(NOTE_MIGRATION, migration.component, migration.number, migration.name)


def _numbered(folders: Sequence[Path]) -> list[tuple[str, int, Path]]:
    return [
        (folder.parent.name, int(path.name.split("_")[0]), path)
        for folder in folders
        for path in sorted(folder.glob("[0-9]*_*.sql"))
    ]


KERNEL_MIGRATIONS = Path(__file__).parent / "migrations"
