"""PostgreSQL: the pool, transactions and migrations."""

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Protocol, TypeVar, cast

import asyncpg
from asyncpg.pool import PoolConnectionProxy

from gotohotel.batches import LOCK_TIMEOUT, Batches, KeptConnections

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

# Together under three seconds: then the caller gets UNAVAILABLE.
ACQUIRE_SECONDS = 1.3
COMMAND_SECONDS = 1.2
RELEASE_SECONDS = 0.3

SESSION = {
    # The server gives up before the client does, so that abandoned statements hold no locks. (In a batch each call has
    # this limit: the client cancels a batch that takes too long.)
    "statement_timeout": "1100ms",
    "lock_timeout": "1s",
    "idle_in_transaction_session_timeout": "10s",
    # A session whose client's machine is gone, or that the network has cut off, ends after 11 s. By default it stays
    # for two hours: after some such outages there would be no memory and no connections left.
    "tcp_keepalives_idle": "5",
    "tcp_keepalives_interval": "2",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "11s",  # also with an answer on its way, which keepalives wait for
    # Every statement uses an index. By default the planner scans whole tables as long as they are new, and keeps such a
    # plan until the next ANALYZE.
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "jit": "off",
    # Planning these statements anew takes longer than running them.
    "plan_cache_mode": "force_generic_plan",
}

KEEPALIVE = {"TCP_KEEPIDLE": 2, "TCP_KEEPINTVL": 1, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 5000}  # s, s, times, ms

# Errors after which a connection may be dead, and others to the same server too.
BROKEN = (OSError, TimeoutError, asyncpg.PostgresConnectionError)

Row = asyncpg.Record
T = TypeVar("T")


class Connection(Protocol):
    """What stores use: a connection inside a transaction, or the pool, where each statement is its own transaction."""

    async def fetch_one(self, query: str, *args: object, lock_order: tuple[Any, ...]) -> Row:
        """Runs a statement that returns exactly one row.

        On the pool, concurrent calls of the same statement may share a transaction, in which they run in the order of
        `lock_order`, so that transactions do not deadlock.
        """
        ...

    async def fetch(self, query: str, *args: object) -> list[Row]: ...
    async def fetchrow(self, query: str, *args: object) -> Row | None: ...
    async def fetchval(self, query: str, *args: object) -> Any: ...
    async def execute(self, query: str, *args: object) -> str: ...


class Session(asyncpg.Connection):
    """A connection as a Connection: inside a transaction nothing is shared.

    If the server's machine is away for five seconds it is closed, even if nobody uses it. (At the other end of a Unix
    socket is our own machine.)
    """

    def __init__(self, protocol: Any, transport: Any, *rest: Any) -> None:
        super().__init__(protocol, transport, *rest)
        opened = transport.get_extra_info("socket")
        if opened.family == socket.AF_UNIX:
            return
        for name, value in KEEPALIVE.items():
            if option := getattr(socket, name, None):  # not on every system
                opened.setsockopt(socket.IPPROTO_TCP, option, value)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

    async def fetch_one(self, query: str, *args: object, lock_order: tuple[Any, ...]) -> Row:  # noqa: ARG002
        [row] = await self.fetch(query, *args)
        return row


class _Autocommit:
    """The pool as a Connection: each statement takes a connection of its own, unless it shares a transaction."""

    def __init__(self, pool: "asyncpg.Pool[Row]", kept: KeptConnections, committed: Callable[[], None]) -> None:
        self._pool = pool
        self._batches = Batches(kept.send, unknown=TRANSIENT)
        self._committed = committed

    async def fetch_one(self, query: str, *args: object, lock_order: tuple[Any, ...]) -> Row:
        row: Row | None = await self._batches.fetch_one(query, args, lock_order)
        if row is None:
            async with _Acquired(self._pool) as connection:
                [row] = await _replacing_dead(self._pool, connection.fetch(query, *args))
        self._committed()
        return row

    async def fetch(self, query: str, *args: object) -> list[Row]:
        async with _Acquired(self._pool) as connection:
            rows = await _replacing_dead(self._pool, connection.fetch(query, *args))
        self._note(query, bool(rows))
        return rows

    async def fetchrow(self, query: str, *args: object) -> Row | None:
        async with _Acquired(self._pool) as connection:
            row = await _replacing_dead(self._pool, connection.fetchrow(query, *args))
        self._note(query, row is not None)
        return row

    async def fetchval(self, query: str, *args: object) -> Any:
        async with _Acquired(self._pool) as connection:
            value = await _replacing_dead(self._pool, connection.fetchval(query, *args))
        self._note(query, bool(value))
        return value

    async def execute(self, query: str, *args: object) -> str:
        async with _Acquired(self._pool) as connection:
            status = await _replacing_dead(self._pool, connection.execute(query, *args))
        self._note(query, not status.endswith(" 0"))
        return status

    def _note(self, query: str, changed: bool) -> None:
        if changed and not query.lstrip().startswith("SELECT"):
            self._committed()


class Database:
    """A service's own database.

    Waiting for a connection, running a statement and returning the connection each have a time limit.
    """

    def __init__(self, pool: "asyncpg.Pool[Row]", kept: KeptConnections) -> None:
        self._pool = pool
        self._autocommit = _Autocommit(pool, kept, self._committed)
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
        async with _Acquired(self._pool) as connection, AsyncExitStack() as begun:
            await _replacing_dead(self._pool, begun.enter_async_context(connection.transaction()))
            yield cast(Connection, connection)
        self._committed()


async def connect(
    url: str, session: dict[str, str], *, connect_seconds: float = 3, command_seconds: float = 5
) -> "asyncpg.Connection[Row]":
    """A connection outside the pool: for a lock, for notifications, for batches. Raises what is TRANSIENT."""
    try:
        return await asyncpg.connect(
            url,
            timeout=connect_seconds,
            command_timeout=command_seconds,
            connection_class=Session,
            server_settings=session,
        )
    except asyncpg.PostgresError as error:
        raise _refusal(error) from error


def _refusal(error: asyncpg.PostgresError) -> ConnectionRefusedError:
    """A server that does not let this service in counts as away, whatever its reason: no statement was sent yet. For
    example, a database that is being restored takes no connections.
    """
    return ConnectionRefusedError(f"PostgreSQL refuses the connection: {error}")


class _Acquired:
    """A pool's connection, for some statements."""

    __slots__ = ("_connection", "_pool")

    def __init__(self, pool: "asyncpg.Pool[Row]") -> None:
        self._pool = pool

    async def __aenter__(self) -> "PoolConnectionProxy[Row]":
        try:
            self._connection = await self._pool.acquire(timeout=ACQUIRE_SECONDS)
        except asyncpg.PostgresError as error:
            raise _refusal(error) from error
        return self._connection

    async def __aexit__(self, *_: object) -> None:
        # A frozen server does not even answer a cancel request: then the connection is discarded.
        await self._pool.release(self._connection, timeout=RELEASE_SECONDS)


async def _replacing_dead(pool: "asyncpg.Pool[Row]", statement: Awaitable[T]) -> T:
    """A statement's result. A server that is slow answers with an error of its own; one that does not answer is away,
    and after an outage its other connections may be dead without knowing it: each would cost a call its time limit.
    """
    try:
        return await statement
    except BROKEN:
        await pool.expire_connections()
        raise


async def _keep_session(_: object) -> None:
    """Replaces asyncpg's reset, which costs a round trip: no code here changes session state."""


@asynccontextmanager
async def open_database(url: str, *, name: str, pool_size: int) -> AsyncIterator[Database]:
    """Opens the pool. Raises OSError or asyncpg's errors if the server can't be reached."""
    session = {"application_name": name, **SESSION}

    async def connect_for_batches() -> "asyncpg.Connection[Row]":
        limits = {**session, "lock_timeout": LOCK_TIMEOUT}
        return await connect(url, limits, connect_seconds=ACQUIRE_SECONDS, command_seconds=COMMAND_SECONDS)

    kept = KeptConnections(connect_for_batches, broken=BROKEN)
    pool = await asyncpg.create_pool(
        url,
        min_size=2,
        max_size=pool_size,
        timeout=3,
        command_timeout=COMMAND_SECONDS,
        reset=_keep_session,
        connection_class=Session,
        server_settings=session,
    )
    try:
        yield Database(pool, kept)
    finally:
        try:
            async with asyncio.timeout(5):
                await kept.close()
                await pool.close()
        except TimeoutError:
            kept.terminate()
            pool.terminate()


async def in_batches(database: Database, statement: str, *before: object) -> None:
    """Repeats a DELETE or UPDATE of at most 1000 rows until no row is left, so that none holds locks for long."""
    while (await database.autocommit.execute(statement, *before)).endswith(" 1000"):  # noqa: ASYNC110
        await asyncio.sleep(0.1)  # lets other statements run between batches
