"""Runs a service: settings from the environment, an ordered start, an ordered drain."""

import asyncio
import gc
import logging
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from datetime import date, timedelta
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import asyncpg
import nats.errors
import uvloop
from google.protobuf.descriptor import ServiceDescriptor
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_delay, wait_random

from gotohotel import idempotency, inbox, language, log, outbox
from gotohotel.bus.connection import Bus
from gotohotel.bus.consumer import GATHER_SECONDS, HALTED_SECONDS, Consumer, ConsumerHalted, Requirement
from gotohotel.bus.pull import ConsumerLost
from gotohotel.bus.streams import DeclarationDiffers
from gotohotel.clock import SYNCHRONIZE_SECONDS, Clock
from gotohotel.database import TRANSIENT, Database, in_batches, open_database
from gotohotel.outbox import Relay
from gotohotel.policies import Policies
from gotohotel.rpc.server import RpcServer
from gotohotel.schema import KERNEL_MIGRATIONS, SchemaBehind, require_migrations
from gotohotel.settings import S, SettingRefused, Settings, read_settings

logger = logging.getLogger(__name__)

DATABASE_GONE_SECONDS = 10.0  # a service whose database has not answered for this long is NOT_SERVING
DECLARATION_SECONDS = 5.0  # how often a differing declaration is compared again


class App:
    """One running service. `compose` fills it; `run` starts what is in it and drains it on SIGTERM."""

    def __init__(self, settings: Settings, database: Database, resources: AsyncExitStack, *, name: str) -> None:
        self.name = name
        self.settings = settings
        self.database = database
        self.resources = resources  # opened by `compose`, closed last by the app
        self.clock = Clock()
        self.bus = Bus(settings.nats_url, name=name)
        self._relay = Relay(settings.database_url, self.bus, source=name)
        database.after_commits(self._follow_commit)
        self._server = RpcServer(
            port=settings.port, host=settings.host, tls_folder=settings.tls_folder, health_port=settings.health_port
        )
        self._consumer: Consumer | None = None
        self._jobs: list[tuple[Callable[[], Awaitable[None]], float, asyncio.Event]] = []
        self._follow_ups: list[asyncio.Event] = []
        self._stopping = asyncio.Event()
        self._calls_ended = asyncio.Event()
        self._is_declared = True  # as far as is known
        self._database_answered = time.monotonic()
        self._failure: Exception | None = None

    def serve(self, service: ServiceDescriptor, implementation: object) -> None:
        """Serves an RPC service."""
        self._server.add(service, implementation)

    def listen(
        self, policies: Policies[Any], *, require: Requirement | None = None, gather_seconds: float = GATHER_SECONDS
    ) -> None:
        """Runs the policies when their events arrive; an event that `require` refuses is a dead letter, unless it was
        handled before. Under load, events of so many seconds are handled together.
        """
        self._consumer = Consumer(self.bus, policies, self.database, require=require, gather_seconds=gather_seconds)

    def every(self, seconds: float, job: Callable[[], Awaitable[None]], *, follows_commits: bool = False) -> None:
        """Runs a job repeatedly, and at once after a commit if it `follows_commits`.

        The job must be safe to run in several replicas at the same time.
        """
        due = asyncio.Event()
        self._jobs.append((job, seconds, due))
        if follows_commits:
            self._follow_ups.append(due)

    def erase_numbers(self, statement: str) -> None:
        """Runs, every hour, a statement that erases the phone numbers of at most 1000 stays that ended before $1."""

        async def erase_numbers() -> None:
            await in_batches(self.database, statement, self.numbers_end())

        self.every(3600, erase_numbers)

    def numbers_end(self) -> date:
        """Of stays that ended before this date no phone number is kept."""
        return (self.clock.now() - timedelta(days=self.settings.keep_numbers_days)).date()

    def _follow_commit(self) -> None:
        """Wakes the relay and the jobs that follow commits."""
        self._relay.wake()
        for due in self._follow_ups:
            due.set()

    async def run(self) -> None:
        """Start, main loop, drain."""
        for name in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(name, self._stopping.set)

        await self.clock.synchronize(self.database, at_any_price=True)
        self.every(3600, self._prune)
        self.every(600, self.bus.watch_the_stream)
        self.every(1, self._report_health)
        self.every(SYNCHRONIZE_SECONDS, self._synchronize_clock)
        await self._server.start()  # first: a port in use ends the start at once
        async with asyncio.TaskGroup() as tasks:
            relay = tasks.create_task(self._or_stop(self._relay.run()))
            consumer = tasks.create_task(self._or_stop(self._consume()))
            jobs = [tasks.create_task(self._repeat(*job)) for job in self._jobs]
            calm_the_garbage_collector()
            await self._server.note_started()
            logger.info("%s serves on port %d", self.name, self.settings.port)

            lost = tasks.create_task(self.bus.lost.wait())
            stopping = tasks.create_task(self._stopping.wait())
            await asyncio.wait([lost, stopping], return_when=asyncio.FIRST_COMPLETED)
            self._stopping.set()
            lost.cancel()

            logger.info("%s drains", self.name)
            await self._server.set_serving(False)  # 1. load balancers that check health send no new calls
            await asyncio.sleep(self.settings.notice_seconds)  # 2. the time they need to notice
            await asyncio.wait([consumer], timeout=5)  # 3. the current batch of events is finished, no other begins
            consumer.cancel()
            await self._server.stop(grace_seconds=self.settings.drain_seconds)  # 4. running calls finish
            self._calls_ended.set()
            for _, _, due in self._jobs:
                due.set()
            await asyncio.wait(jobs, timeout=5)  # 5. then the jobs: one of them renews the claims of running calls
            for job in jobs:
                job.cancel()
            self._relay.finish()  # 6. the relay publishes what these calls announced
            await asyncio.wait([relay], timeout=5)
            relay.cancel()
            await self.bus.close()
        logger.info("%s has stopped", self.name)
        if self._failure is not None:
            raise self._failure
        if self.bus.lost.is_set():
            raise ConsumerLost("the connection to NATS was closed for good")

    async def _or_stop(self, loop: Awaitable[None]) -> None:
        """Runs a loop for the lifetime of the service. If it fails, running calls still finish in order."""
        try:
            await loop
        except Exception as error:  # Outermost handler of loops: a failure ends the service, but interrupts no call.
            logger.critical("%s can't go on", self.name, exc_info=error)
            self._failure = error
            self._stopping.set()

    async def _consume(self) -> None:
        """Consumes events while NATS is reachable. Calls are served meanwhile; the outbox keeps their events."""
        while not self._stopping.is_set():
            try:
                await self.bus.connect(self._stopping)
                if self._consumer is not None and not self._stopping.is_set():
                    await self._consumer.declare()
                self._is_declared = True
                if self._consumer is None or self._stopping.is_set():
                    return
                await self._consumer.run(self._stopping)
            except DeclarationDiffers as error:
                logger.critical("not serving, because NATS is not as this release declares it: %s", error)
                self._is_declared = False
                await self._pause(DECLARATION_SECONDS)
            except ConsumerHalted as error:
                logger.critical("consuming is paused; no event is lost: %s", error)
                await self._pause(HALTED_SECONDS)
            except (*TRANSIENT, nats.errors.Error, ConsumerLost) as error:
                logger.error("no events are taken: %r", error)
                await self._pause(2)

    async def _report_health(self) -> None:
        """Reports NOT_SERVING if the database is gone, or if a rollout must stop here so that the previous release goes
        on: the consumer on the server is not as declared, or no event at all could be handled. A service that has
        handled at least one event keeps taking calls.
        """
        with suppress(*TRANSIENT, asyncpg.PostgresError):
            await self.database.autocommit.fetchval("SELECT 1")
            self._database_answered = time.monotonic()
        has_database = time.monotonic() - self._database_answered < DATABASE_GONE_SECONDS
        can_handle = self._consumer is None or self._consumer.has_handled or not self._consumer.is_halted
        serving = self._is_declared and can_handle and not self._stopping.is_set()
        await self._server.set_serving(serving, has_database=has_database)

    async def _pause(self, seconds: float, until: asyncio.Event | None = None) -> None:
        """Waits this long, or until the event is set, or until the service is told to stop."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await (until or self._stopping).wait()

    async def _repeat(self, job: Callable[[], Awaitable[None]], seconds: float, due: asyncio.Event) -> None:
        while not self._calls_ended.is_set():
            due.clear()
            try:
                await job()
            except TRANSIENT as error:
                logger.warning("job %s: %r", job.__name__, error)
            except Exception:  # Outermost handler of jobs: a failure must not end the calls beside it.
                logger.exception("job %s has failed and is tried again", job.__name__)
            await self._pause(seconds, due)

    async def _synchronize_clock(self) -> None:
        await self.clock.synchronize(self.database)

    async def _prune(self) -> None:
        for component in (outbox, inbox, idempotency):
            await component.prune(self.database, now=self.clock.now())


def calm_the_garbage_collector() -> None:
    """Excludes the objects made at start from garbage collection; requests leave few cycles.

    Saves 6 % of a service's CPU (`make bench`).
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


def _patiently(seconds: float) -> AsyncRetrying:
    """Retries what a start needs for this long: in a cluster everything starts at once."""

    def warn(state: RetryCallState) -> None:
        logger.warning("the start waits: %s", state.outcome.exception() if state.outcome else None)

    return AsyncRetrying(
        retry=retry_if_exception_type((SchemaBehind, OSError, asyncpg.PostgresError)),
        stop=stop_after_delay(seconds),
        wait=wait_random(0.5, 1.5),
        before_sleep=warn,
        reraise=True,
    )


def _give_up(name: str, *_: object) -> NoReturn:
    """SIGTERM before there is anything to drain. The kernel ignores it for a container's first process, if nobody
    handles it.
    """
    sys.exit(f"{name} was stopped before it had started")


async def _main(name: str, settings: Settings, compose: Callable[[App, Any], Awaitable[None]], folder: Path) -> None:
    signal.signal(signal.SIGTERM, partial(_give_up, name))
    async with AsyncExitStack() as resources:
        async for attempt in _patiently(settings.start_seconds):
            with attempt:
                database = await resources.enter_async_context(
                    open_database(settings.database_url, name=name, pool_size=settings.pool_size)
                )
        async for attempt in _patiently(settings.start_seconds):
            with attempt:
                await require_migrations(database, KERNEL_MIGRATIONS, folder / "migrations")
        app = App(settings, database, resources, name=name)
        await compose(app, settings)
        await app.run()


def run(
    settings_type: type[S],
    prefix: str,
    compose: Callable[[App, S], Awaitable[None]],
    *,
    folder: Path,
    others: tuple[str, ...] = (),
) -> None:
    """A service's main function: exits with one clear sentence if the service can't start.

    `others`: beginnings of the variables that `compose` reads by itself.
    """
    name = folder.name
    try:
        log.configure("INFO")
        settings = read_settings(settings_type, prefix, others=others)
        log.configure(settings.log_level)
        language.use(folder / "locale")
        uvloop.run(_main(name, settings, compose, folder))
    except (SettingRefused, SchemaBehind) as error:
        sys.exit(f"{name}: {error}")
    except (OSError, asyncpg.PostgresError) as error:
        place = settings.database_url.rsplit("@")[-1]
        sys.exit(f"{name} can't start (database {place}, port {settings.port}): {error}")
    except ConsumerLost as error:
        sys.exit(f"{name} has ended: {error}")
    except Exception as error:
        logger.critical("%s has failed", name, exc_info=error)
        sys.exit(f"{name} has failed: {error!r}")
