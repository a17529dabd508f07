"""The stream of events and its archive, for the operator's commands, which must not miss a message unnoticed.

Long because the stream and its archive are one sequence of events: whoever changes how one is read changes the other.
"""

import base64
import fcntl
import gzip
import json
import os
import shutil
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import nats.errors
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy
from nats.js.errors import APIError, NotFoundError

from gotohotel.bus.streams import EVENTS
from ops import nats_server
from ops.addresses import Addresses
from ops.errors import StackError

# A header of an event that was replaced by a copy: when it was published first.
PUBLISHED_AT = "x-published-at"
FETCH = 500
ARCHIVE_FILE_EVENTS = 50_000
MIB = 1024**2


@dataclass(frozen=True, slots=True)
class StreamMessage:
    """One message of a stream, or of its archive."""

    sequence: int
    subject: str
    headers: dict[str, str]
    data: bytes
    time: datetime


@asynccontextmanager
async def jetstream(stack: Addresses) -> AsyncIterator[JetStreamContext]:
    """The JetStream context of a stack. Raises StackError if NATS can't be reached or the connection is lost."""
    async with AsyncExitStack() as opened:
        try:
            js = await opened.enter_async_context(nats_server.as_operator(stack.nats_url()))
        except (OSError, TimeoutError, nats.errors.Error) as error:
            raise StackError(f"NATS can't be reached: {str(error) or type(error).__name__}") from None
        try:
            yield js
        except (TimeoutError, nats.errors.Error) as error:
            raise StackError(f"NATS did not answer as it should: {str(error) or type(error).__name__}") from None


# ---------------------------------------------------------------------------------------------- size


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """How full the stream of events is."""

    messages: int
    used_bytes: int
    max_bytes: int
    first_at: datetime | None
    last_at: datetime | None
    free_disk_bytes: int
    archived: int
    behind: dict[str, int]  # consumer → number of events that it has not handled

    @property
    def days_left(self) -> float | None:
        """Days until it is full, at the average rate since its first event; None if unknown."""
        if not self.first_at or not self.last_at or self.last_at <= self.first_at:
            return None
        days = (self.last_at - self.first_at).total_seconds() / 86_400
        return (self.max_bytes - self.used_bytes) / (self.used_bytes / days)


async def usage(stack: Addresses) -> Usage:
    """How full it is, and how far consumers are behind."""
    async with jetstream(stack) as js:
        stream = await js.stream_info(str(EVENTS.name))
        consumers = await js.consumers_info(str(EVENTS.name))
        state: Any = stream.state
        return Usage(
            messages=state.messages,
            used_bytes=state.bytes,
            max_bytes=stream.config.max_bytes or 0,
            first_at=await _time_of(js, state.first_seq),
            last_at=await _time_of(js, state.last_seq),
            free_disk_bytes=shutil.disk_usage(stack.home).free,
            archived=sum(archive.last - archive.first + 1 for archive in archives(stack)),
            behind={
                str(each.config.durable_name): (each.num_pending or 0) + (each.num_ack_pending or 0)
                for each in consumers
                if each.config.durable_name
            },
        )


async def _time_of(js: JetStreamContext, sequence: int) -> datetime | None:
    try:
        return (await js.get_msg(str(EVENTS.name), sequence)).time
    except (NotFoundError, APIError):
        return None


async def grow(stack: Addresses, max_bytes: int) -> int:
    """Raises the stream's size limit; returns the previous one.

    Raises StackError if it would shrink, or if the disk is too small.
    """
    async with jetstream(stack) as js:
        stream = await js.stream_info(str(EVENTS.name))
        before, used = int(stream.config.max_bytes or 0), int(stream.state.bytes)
        if max_bytes <= before:
            raise StackError(f"The stream may hold {before // MIB} MiB already; it does not shrink.")
        free = shutil.disk_usage(stack.home).free
        if max_bytes - used > free:
            raise StackError(f"The disk has {free // MIB} MiB left, {(max_bytes - used) // MIB} MiB would be needed.")
        await js.update_stream(stream.config.evolve(max_bytes=max_bytes))
        return before


# ---------------------------------------------------------------------------------------------- archive


@dataclass(frozen=True, slots=True)
class Archive:
    """One file of old events: compressed JSON lines. Its name gives the range of events and their stream.

    A stream that is created anew counts from 1 again, so `stream` is its creation time.
    """

    path: Path
    stream: str
    first: int
    last: int

    def read(self) -> Iterator[StreamMessage]:
        """Its events. Raises StackError if one is missing or the file is damaged."""
        expected = 0
        try:
            with gzip.open(self.path, "rt", encoding="utf-8") as lines:
                for line in lines:
                    kept = json.loads(line)
                    expected += 1
                    yield StreamMessage(
                        kept["sequence"],
                        kept["subject"],
                        kept["headers"],
                        base64.b64decode(kept["data"]),
                        datetime.fromisoformat(kept["time"]),
                    )
        except (OSError, EOFError, ValueError, KeyError) as error:
            raise StackError(f"The archive {self.path} can't be read after {expected} events: {error}") from None

    def check(self) -> None:
        """Raises StackError if the file is incomplete."""
        places = [message.sequence for message in self.read()]
        if not places or (places[0], places[-1]) != (self.first, self.last):
            raise StackError(f"The archive {self.path} does not hold what its name says; nothing was removed.")


def archives(stack: Addresses) -> list[Archive]:
    """The archive's files, oldest first."""
    return archives_in(stack.archive)


def archives_in(folder: Path) -> list[Archive]:
    """The archive's files in a folder, oldest first."""
    found = []
    for path in sorted(folder.glob("events-*-*-*.jsonl.gz")):
        stream, first, last = path.name.removesuffix(".jsonl.gz").split("-")[1:]
        found.append(Archive(path, stream, int(first), int(last)))
    return found


async def archived_until(stack: Addresses, js: JetStreamContext) -> int:
    """The last sequence number of the present stream that is archived; 0 if none is."""
    stream = await stream_id(js)
    return max((archive.last for archive in archives(stack) if archive.stream == stream), default=0)


async def stream_id(js: JetStreamContext) -> str:
    """What tells the present stream of events from one that was made before or after it: ids sort by time."""
    created = (await js.stream_info(str(EVENTS.name))).created
    return f"{created:%Y%m%dT%H%M%S}" if created else "unknown"


async def archive(stack: Addresses, before: datetime) -> int:
    """Moves events published before a time from the stream to the archive; returns how many. Safe to interrupt.

    An event stays until every consumer has acknowledged it, and leaves the stream only when its file is on the disk.
    After an interruption it may be in both; readers handle that, and the next run removes it from the stream.
    """
    with archive_locked(stack):
        async with jetstream(stack) as js:
            return await _archive(stack, js, before)


@contextmanager
def archive_locked(stack: Addresses) -> Iterator[None]:
    """No event moves from the stream to the archive meanwhile. Raises StackError if somebody else holds the lock."""
    stack.archive.mkdir(mode=0o700, parents=True, exist_ok=True)  # events hold guests' names and phone numbers
    with (stack.archive / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise StackError(
                "The archive is in use, by an archive, a backup, a rebuild or a forget; try again later."
            ) from None
        yield


def rewrite_archives(stack: Addresses, change: Callable[[str, bytes], bytes | None]) -> int:
    """Replaces archived events for which `change(subject, data)` returns other data; returns how many. The caller holds
    the lock.
    """
    changed = 0
    for archived in archives(stack):
        messages, found = [], 0
        for message in archived.read():
            data = change(message.subject, message.data)
            messages.append(message if data is None else replace(message, data=data))
            found += data is not None
        if found:
            write_archive(stack.archive, archived.stream, messages)
        changed += found
    return changed


async def _archive(stack: Addresses, js: JetStreamContext, before: datetime) -> int:
    name, stream = str(EVENTS.name), await stream_id(js)
    done = await archived_until(stack, js)
    for archived in archives(stack):
        if archived.stream == stream:
            archived.check()  # left by an interrupted run: it must be complete before anything is removed
    consumers = [each for each in await js.consumers_info(name) if each.config.durable_name]
    floor = min((each.ack_floor.stream_seq for each in consumers if each.ack_floor), default=0)
    moved = 0
    batch: list[StreamMessage] = []
    async with aclosing(messages_of(js, name)) as messages:
        async for message in messages:
            if message.time >= before or message.sequence > floor:
                break
            if message.sequence > done:
                batch.append(message)
            if len(batch) == ARCHIVE_FILE_EVENTS:
                moved += write_archive(stack.archive, stream, batch)
                done, batch = batch[-1].sequence, []
    if batch:
        moved += write_archive(stack.archive, stream, batch)
        done = batch[-1].sequence
    if done:
        await js.purge_stream(name, seq=min(done, floor) + 1)
    return moved


def write_archive(folder: Path, stream: str, messages: list[StreamMessage]) -> int:
    """Writes a file, which gets its final name only after it was read back completely."""
    first, last = messages[0].sequence, messages[-1].sequence
    path = folder / f"events-{stream}-{first:016d}-{last:016d}.jsonl.gz"
    fresh = path.with_suffix(".new")
    fresh.touch(mode=0o600)
    with fresh.open("wb") as raw:
        with gzip.open(raw, "wt", encoding="utf-8") as lines:
            for message in messages:
                kept = {
                    "sequence": message.sequence,
                    "subject": message.subject,
                    "time": message.time.isoformat(),
                    "headers": message.headers,
                    "data": base64.b64encode(message.data).decode(),
                }
                lines.write(json.dumps(kept) + "\n")
        raw.flush()
        os.fsync(raw.fileno())
    Archive(fresh, stream, first, last).check()
    fresh.rename(path)
    opened = os.open(folder, os.O_RDONLY)
    os.fsync(opened)
    os.close(opened)
    return len(messages)


# ---------------------------------------------------------------------------------------------- reading


async def every_event(
    stack: Addresses, js: JetStreamContext, *, since: datetime | None = None
) -> AsyncIterator[StreamMessage]:
    """All events ever published, or those since a time; the archived ones first."""
    done = await archived_until(stack, js)
    for archived in archives(stack):
        for message in archived.read():
            if since is None or message.time >= since:
                yield message
    async for message in messages_of(js, str(EVENTS.name), since=since):
        if message.sequence > done:
            yield message


async def messages_of(
    js: JetStreamContext, stream: str, *, subjects: str = "", since: datetime | None = None
) -> AsyncGenerator[StreamMessage, None]:
    """The messages in a stream now; or those of some subjects, or those since a time."""
    reading = ConsumerConfig(
        ack_policy=AckPolicy.NONE,
        inactive_threshold=30,
        deliver_policy=DeliverPolicy.BY_START_TIME if since else DeliverPolicy.ALL,
        opt_start_time=since,
    )
    subscription = await js.pull_subscribe(subjects, stream=stream, config=reading)
    try:
        left = (await subscription.consumer_info()).num_pending or 0
        while left > 0:
            for message in await subscription.fetch(min(left, FETCH), timeout=5):
                left -= 1
                place = message.metadata
                headers = dict(message.headers or {})
                yield StreamMessage(place.sequence.stream, message.subject, headers, message.data, place.timestamp)
    finally:
        await subscription.unsubscribe()
