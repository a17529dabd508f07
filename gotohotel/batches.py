"""Statements of concurrent calls share a round trip and a commit.

While a statement is running, further calls of the same statement wait, and then go to the server together, as one
transaction. If that fails, none of it has happened, and each call runs its statement again by itself: no call sees
another's error. A call that has to wait for a lock is taken out of the batch in the same way, so that it delays nobody.

After a batch of several calls there is a pause in which more calls gather. It costs time and saves work, so it is short
as long as there is processor time to spare, and longer the longer this process has to wait for the processor.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import asyncpg

MAX_CALLS = 32
LEAST_PAUSE, MOST_PAUSE = 0.008, 0.03
TIMES_LATE = 13  # a pause is so many times as long as the delay with which pauses have lately ended
MEMORY = 16  # pauses over which that delay is averaged
LOCK_TIMEOUT = "100ms"  # shorter than PostgreSQL's deadlock_timeout
# Errors of a statement that has to wait for others: outside of a batch it delays nobody.
CALL_GOES_ALONE = (asyncpg.LockNotAvailableError, asyncpg.TransactionRollbackError)
ONE_ROW = "a statement that shares transactions returns exactly one row"
CANCEL_SECONDS = 0.3  # the server has so long to take the request to cancel a batch

T = TypeVar("T")


class Sender(Protocol):
    """Runs a statement once for each of some parameter lists, in one transaction; returns all rows."""

    async def __call__(self, query: str, arguments: Sequence[Sequence[object]]) -> list[Any]: ...


@dataclass(frozen=True, slots=True)
class _Call:
    arguments: Sequence[object]
    lock_order: tuple[Any, ...]
    row: "asyncio.Future[Any]"


class Pause:
    """The pause after a batch, in seconds."""

    def __init__(self) -> None:
        self._late = 0.0

    @property
    def seconds(self) -> float:
        """How long the next one is."""
        return min(max(LEAST_PAUSE, TIMES_LATE * self._late), MOST_PAUSE)

    async def take(self) -> None:
        """Sleeps, and notes how late the event loop continues."""
        loop = asyncio.get_running_loop()
        due = loop.time() + self.seconds
        await asyncio.sleep(self.seconds)
        # As late as one longest pause at most, even if the process stood still for an hour.
        late = min(loop.time() - due, MOST_PAUSE)
        self._late += (late - self._late) / MEMORY


class Batches:
    """The calls that wait to share a transaction, by statement.

    `unknown`: errors after which a batch may have been committed or not.
    """

    def __init__(self, send: Sender, *, unknown: tuple[type[Exception], ...]) -> None:
        self._send = send
        self._unknown = unknown
        self._pause = Pause()
        self._has_company = False  # whether the last batch had several calls: their next statements share one again
        self._waiting: dict[str, list[_Call]] = {}
        self._running: set[asyncio.Task[None]] = set()

    async def fetch_one(self, query: str, arguments: Sequence[object], lock_order: tuple[Any, ...]) -> Any:
        """The one row that the statement returns, or None if it was not run and the caller has to run it alone.

        Raises the statement's own error.
        """
        if query not in self._waiting and not self._has_company:
            return await self._run_alone(query, arguments)
        call = _Call(arguments, lock_order, asyncio.get_running_loop().create_future())
        if query in self._waiting:
            self._waiting[query].append(call)
        else:
            self._waiting[query] = [call]
            self._start(query)
        return await call.row

    async def _run_alone(self, query: str, arguments: Sequence[object]) -> Any:
        """Runs the statement in the caller's own task, for which the event loop has less to do. If the caller is
        canceled, so is the statement.
        """
        # Others that come meanwhile wait. The entry stays until none does: then whoever was last deletes it.
        waiting = self._waiting[query] = []
        try:
            rows = await self._send(query, [arguments])
        except CALL_GOES_ALONE:
            return None
        except self._unknown as error:
            _fail_all(waiting, error)
            waiting.clear()
            raise
        finally:
            if waiting:
                self._start(query)
            else:
                del self._waiting[query]
        if len(rows) != 1:
            raise TypeError(ONE_ROW)
        return rows[0]

    def _start(self, query: str) -> None:
        task = asyncio.create_task(self._run(query))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _run(self, query: str) -> None:
        """Sends batches until no call waits."""
        waiting = self._waiting[query]
        batch: list[_Call] = []
        try:
            while waiting:
                first, waiting[:MAX_CALLS] = waiting[:MAX_CALLS], []
                # Every batch, in every replica, locks its rows in the same order.
                batch = sorted((call for call in first if not call.row.done()), key=lambda call: call.lock_order)
                if batch:
                    self._has_company = len(batch) > 1
                    await self._send_batch(query, batch)
                if len(batch) > 1:
                    await self._pause.take()
        finally:
            del self._waiting[query]
            for call in (*batch, *waiting):
                call.row.cancel()  # does nothing to those that have their row

    async def _send_batch(self, query: str, batch: list[_Call]) -> None:
        try:
            rows = await self._send(query, [call.arguments for call in batch])
        except CALL_GOES_ALONE:
            self._leave_alone(batch)
        except self._unknown as error:
            # The server is away or slow. Those that wait have waited long enough.
            waiting = self._waiting[query]
            _fail_all((*batch, *waiting), error)
            waiting.clear()
        except Exception as error:  # noqa: BLE001 - belongs to the call that caused it
            if len(batch) == 1:
                _fail(batch[0], error)
            else:
                self._leave_alone(batch)
        else:
            if len(rows) != len(batch):  # committed, but nobody knows whose rows these are
                _fail_all(batch, TypeError(ONE_ROW))
                return
            for call, row in zip(batch, rows, strict=True):
                if not call.row.done():
                    call.row.set_result(row)

    def _leave_alone(self, batch: list[_Call]) -> None:
        for call in batch:
            if not call.row.done():
                call.row.set_result(None)


def _fail(call: _Call, error: Exception) -> None:
    if not call.row.done():
        call.row.set_exception(error)


def _fail_all(calls: Iterable[_Call], error: Exception) -> None:
    for call in calls:
        _fail(call, error)


class KeptConnections:
    """Connections for batches, kept for the next ones: a pool would cost almost as much as a short statement. There are
    as many as there are statements whose batches run at the same time.

    `broken`: errors after which a connection may be dead, and others to the same server too.
    """

    def __init__(
        self,
        connect: "Callable[[], Awaitable[asyncpg.Connection[asyncpg.Record]]]",
        *,
        broken: tuple[type[Exception], ...],
    ) -> None:
        self._connect = connect
        self._broken = broken
        self._idle: list[asyncpg.Connection[asyncpg.Record]] = []
        self._closed = False

    async def send(self, query: str, arguments: Sequence[Sequence[object]]) -> list[Any]:
        """Runs a statement once for each of some parameter lists, in one transaction; returns all rows."""
        connection = self._idle.pop() if self._idle else None
        if connection is None or connection.is_closed():
            connection = await self._connect()
        try:
            if len(arguments) == 1:
                rows = await connection.fetch(query, *arguments[0])
            else:
                rows = await connection.fetchmany(query, arguments)
        except asyncio.CancelledError:
            await _cancel(connection)
            raise
        except BaseException as error:
            if isinstance(error, asyncpg.PostgresError) and not isinstance(error, self._broken):
                self._keep(connection)  # the statement has failed, not the connection
            else:
                self.terminate()
                await _cancel(connection)
            raise
        self._keep(connection)
        return rows

    def _keep(self, connection: "asyncpg.Connection[asyncpg.Record]") -> None:
        if self._closed:
            connection.terminate()
        else:
            self._idle.append(connection)

    def terminate(self) -> None:
        """Ends the idle connections without a word to the server."""
        while self._idle:
            self._idle.pop().terminate()

    async def close(self) -> None:
        """Closes the idle connections; no others are kept from now on."""
        self._closed = True
        while self._idle:
            await self._idle.pop().close()


async def _cancel(connection: "asyncpg.Connection[asyncpg.Record]") -> None:
    """Closes a connection, after telling the server to cancel what it is doing for it: nothing must be committed long
    after its calls were told that it failed, and hold its locks until then.
    """
    try:
        await connection.close(timeout=CANCEL_SECONDS)
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError):
        connection.terminate()  # a frozen server does not even answer a cancel request
