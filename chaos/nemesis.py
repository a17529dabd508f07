"""Injects real faults, and counts only those that it has observed."""

import asyncio
import os
import resource
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import asyncpg
import psutil

from chaos.links import Links
from chaos.replicas import Replicas
from gotohotel.bus.streams import EVENTS
from gotohotel.database import TRANSIENT
from ops.configuration import PROCESSES
from ops.ports import accepts
from ops.stack import Stack
from ops.stream import jetstream

COMES_BACK_SECONDS = 60
BREAK_CONNECTIONS = """
SELECT count(pg_terminate_backend(pid))
FROM pg_stat_activity
WHERE usename LIKE '%\\_svc'
  AND application_name <> 'chaos'
"""
SMALL_FILE_BYTES = 4096


class NoHarmDone(Exception):
    """A fault was not injected: the run proves nothing."""


class NotAsItMust(Exception):
    """A scenario's requirement does not hold."""


@dataclass(kw_only=True)
class Fault:
    """One injected fault, and when (monotonic seconds)."""

    kind: str
    target: str
    began: float
    ended: float = 0.0


@dataclass
class Nemesis:
    """The faults that can be injected into a stack: into a service, that is into all its replicas."""

    stack: Stack
    links: Links
    replicas: Replicas
    faults: list[Fault] = field(default_factory=list)

    def note(self, kind: str, target: str, *, began: float | None = None) -> Fault:
        """Counts a fault that was observed."""
        now = time.monotonic()
        fault = Fault(kind=kind, target=target, began=began or now, ended=now)
        self.faults.append(fault)
        return fault

    async def kill(self, name: str) -> None:
        """kill -9; returns when all its processes run again."""
        began, pids = time.monotonic(), await self._pids(name)
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        await until(lambda: not any(map(_lives, pids)), f"{name} survives kill -9", error=NoHarmDone)
        fault = self.note("kill", name, began=began)
        await self._comes_back(name, pids)
        fault.ended = began  # from the kill on, recovery is up to the system

    async def restart(self, name: str) -> None:
        """An orderly stop and start."""
        began = time.monotonic()
        await self._stop(name)
        fault = self.note("restart", name, began=began)
        await self._start(name)
        fault.ended = began

    @asynccontextmanager
    async def stopped(self, name: str) -> AsyncIterator[None]:
        """Stops the process during the block."""
        await self._stop(name)
        fault = self.note("stop", name)
        try:
            yield
        finally:
            await self._start(name)
            fault.ended = time.monotonic()

    @asynccontextmanager
    async def frozen(self, name: str) -> AsyncIterator[None]:
        """SIGSTOP for the process and its children, and SIGCONT at the end."""
        parents = [psutil.Process(pid) for pid in await self._pids(name)]
        processes = [each for parent in parents for each in (parent, *parent.children(recursive=True))]

        def all_stopped() -> bool:
            states = [process.status() for process in processes if process.is_running()]
            return all(state in (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE) for state in states)

        try:
            for process in processes:
                with suppress(psutil.NoSuchProcess):  # a PostgreSQL session may have ended just now
                    process.suspend()
            await until(all_stopped, f"{name} does not freeze", error=NoHarmDone)
            fault = self.note("freeze", name)
            yield
            fault.ended = time.monotonic()
        finally:
            for process in processes:
                with suppress(psutil.NoSuchProcess):
                    process.resume()

    @asynccontextmanager
    async def cut(self, caller: str, part: str, *, there: bool = True, back: bool = True) -> AsyncIterator[None]:
        """Discards traffic during the block. If none was discarded there was no cut."""
        names = (caller, part)
        began = time.monotonic()
        self.links.cut(names, there=there, back=back)
        try:
            yield
            swallowed = self.links.swallowed(names)
        finally:
            self.links.heal(names)
        if not swallowed:
            raise NoHarmDone(f"nobody sent anything from {caller} to {part} while that was cut")
        self.note("cut", f"{caller} – {part}", began=began)

    @asynccontextmanager
    async def full_stream(self) -> AsyncIterator[None]:
        """Makes the stream full: its limit is set to its current size."""
        began = time.monotonic()
        async with jetstream(self.stack) as js:
            await js.update_stream(_limited(EVENTS, (await js.stream_info(str(EVENTS.name))).state.bytes))
            try:
                yield
                fault_seen = await self._waiting_events()
            finally:
                await js.update_stream(EVENTS)
        if not fault_seen:
            raise NoHarmDone("the full stream kept no event waiting")
        self.note("full stream", "nats", began=began)

    @asynccontextmanager
    async def full_disk(self) -> AsyncIterator[None]:
        """Makes every file write of NATS fail. It has to be restarted when there is room again."""
        began = time.monotonic()
        process = psutil.Process((await self._pids("nats"))[0])
        process.rlimit(psutil.RLIMIT_FSIZE, (SMALL_FILE_BYTES, resource.RLIM_INFINITY))
        try:
            yield
            fault_seen = await self._waiting_events()
        finally:
            process.rlimit(psutil.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            await self.kill("nats")
        if not fault_seen:
            raise NoHarmDone("the full disk kept no event waiting")
        self.note("full disk", "nats", began=began)

    @asynccontextmanager
    async def starved(self) -> AsyncIterator[None]:
        """Takes all connections of PostgreSQL and breaks those of the services."""
        hoard: list[asyncpg.Connection[asyncpg.Record]] = []
        url = self.stack.database_url("order_svc", "order_svc")
        began = time.monotonic()
        boss = await asyncpg.connect(self.stack.database_url("postgres", "postgres"))
        try:
            # Services may reconnect first, so this repeats until they have no connection.
            await until(lambda: self._take_all(boss, hoard, url), "the services keep connections", error=NoHarmDone)
            fault = self.note("no connections left", "postgres", began=began)
            yield
            fault.ended = time.monotonic()
        finally:
            for connection in hoard:
                connection.terminate()
            await boss.close()

    async def _take_all(
        self, boss: "asyncpg.Connection[asyncpg.Record]", hoard: list["asyncpg.Connection[asyncpg.Record]"], url: str
    ) -> bool:
        broken = await boss.fetchval(BREAK_CONNECTIONS)
        while True:
            try:
                hoard.append(await asyncpg.connect(url, timeout=3, server_settings={"application_name": "chaos"}))
            except asyncpg.TooManyConnectionsError:
                return not broken

    async def _waiting_events(self) -> int:
        return int(await query(self.stack, "order_svc", "SELECT count(*) FROM outbox WHERE published_at IS NULL"))

    def replicas_of(self, name: str) -> int:
        """How many processes a service has."""
        return 1 + len(self.replicas.ports[PROCESSES[name]])

    async def _stop(self, name: str) -> None:
        pids = await self._pids(name)
        await asyncio.gather(asyncio.to_thread(self.stack.stop, name), asyncio.to_thread(self.replicas.stop, name))
        if any(map(_lives, pids)):
            raise NoHarmDone(f"{name} did not stop")

    async def _start(self, name: str) -> None:
        self.replicas.start(name)
        await asyncio.to_thread(self.stack.start, name)
        await until(lambda: self.replicas.all_accept(name), f"a replica of {name} does not start")

    async def _pids(self, name: str) -> list[int]:
        """Of the stack's own process, and of the replicas."""
        status = await asyncio.to_thread(self.stack.status)
        pid = next(pid for process, _, pid, _ in status if process == name)
        if not pid:
            raise NoHarmDone(f"{name} does not run")
        return [pid, *self.replicas.pids(name)]

    async def _comes_back(self, name: str, old_pids: list[int]) -> None:
        # Asks its port, not the supervisor: a question would make the supervisor check its children sooner than it does
        # by itself.
        port = self.stack.ports[PROCESSES.get(name, name)]

        def is_back() -> bool:
            are_new = not set(self.replicas.pids(name)) & set(old_pids) and self.replicas.all_accept(name)
            return not psutil.pid_exists(old_pids[0]) and accepts(port) and are_new

        await until(is_back, f"{name} does not come back", seconds=COMES_BACK_SECONDS)


async def query(stack: Stack, database: str, statement: str, *arguments: Any) -> Any:
    """One value, read as PostgreSQL's superuser."""
    connection = await asyncpg.connect(stack.database_url(database, "postgres"), timeout=5)
    try:
        return await connection.fetchval(statement, *arguments)
    finally:
        await connection.close()


async def until(
    condition: Any,
    otherwise: str,
    *,
    seconds: float = 30,
    error: type[Exception] = NotAsItMust,
) -> None:
    """Waits until a condition (a function or a coroutine function) is true. Raises the error if it is not in time."""
    ends = time.monotonic() + seconds
    while True:
        with suppress(*TRANSIENT):  # the part that is asked may be away itself
            holds = condition()
            if await holds if asyncio.iscoroutine(holds) else holds:
                return
        if time.monotonic() > ends:
            raise error(otherwise)
        await asyncio.sleep(0.02)


def _limited(stream: Any, max_bytes: int) -> Any:
    return type(stream)(**{**vars(stream), "max_bytes": max_bytes})


def _lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
