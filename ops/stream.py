"""The stream of events and its archive, as an operator's commands reach them: no message is missed unnoticed."""

import base64
import gzip
import json
import os
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import nats
import nats.errors
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy
from nats.js.errors import APIError, NotFoundError

from gotohotel.bus import EVENTS
from ops.errors import StackError
from ops.stack import Stack

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
async def jetstream(stack: Stack) -> AsyncIterator[JetStreamContext]:
    """The streams of a stack. Raises StackError if NATS can't be reached, or goes away meanwhile."""
    try:
        client = await nats.connect(
            stack.nats_url(),
            connect_timeout=3,
            # A connection that breaks must not heal unnoticed: what was on its way in it would be missing.
            allow_reconnect=False,
            max_reconnect_attempts=1,
            reconnect_time_wait=0.2,
            error_cb=_say_nothing,
        )
    except (OSError, TimeoutError, nats.errors.Error) as error:
        raise StackError(f"NATS can't be reached: {str(error) or type(error).__name__}") from None
    try:
        yield client.jetstream()
    except (TimeoutError, nats.errors.Error) as error:
        raise StackError(f"NATS did not answer as it should: {str(error) or type(error).__name__}") from None
    finally:
        await client.close()


async def _say_nothing(_: Exception) -> None:
    """The exception that is raised says it."""


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
    behind: dict[str, int]  # consumer → events that it has not handled

    @property
    def days_left(self) -> float | None:
        """Until it is full, if events come as they have come since its first one; None if nobody can tell."""
        if not self.first_at or not self.last_at or self.last_at <= self.first_at:
            return None
        days = (self.last_at - self.first_at).total_seconds() / 86_400
        return (self.max_bytes - self.used_bytes) / (self.used_bytes / days)


async def usage(stack: Stack) -> Usage:
    """How full it is, and who lags behind."""
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


async def grow(stack: Stack, max_bytes: int) -> int:
    """Gives the stream more room; what it had before. Raises StackError if that is less, or more than the disk has."""
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
    """One file of old events: a line of JSON each, compressed. Its name says which."""

    path: Path
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


def archives(stack: Stack) -> list[Archive]:
    """The files of the archive, oldest first."""
    found = []
    for path in sorted(stack.archive.glob("events-*-*.jsonl.gz")):
        first, last = path.name.removesuffix(".jsonl.gz").split("-")[1:]
        found.append(Archive(path, int(first), int(last)))
    return found


async def archive(stack: Stack, before: datetime) -> int:
    """Moves events that were published before a time from the stream to the archive; how many. Safe to break off.

    An event stays until every consumer has acknowledged it. It leaves the stream when its file is on the disk; if the
    command is broken off in between it stands in both, which readers know, and the next run removes it.
    """
    async with jetstream(stack) as js:
        name = str(EVENTS.name)
        known = archives(stack)
        done = known[-1].last if known else 0
        consumers = [each for each in await js.consumers_info(name) if each.config.durable_name]
        floor = min((each.ack_floor.stream_seq for each in consumers if each.ack_floor), default=0)
        moved, batch = 0, list[StreamMessage]()
        async for message in messages_of(js, name):
            if message.time >= before or message.sequence > floor:
                break
            if message.sequence > done:
                batch.append(message)
            if len(batch) == ARCHIVE_FILE_EVENTS:
                moved += _write(stack, batch)
                done, batch = batch[-1].sequence, []
        if batch:
            moved += _write(stack, batch)
            done = batch[-1].sequence
        if done:
            await js.purge_stream(name, seq=done + 1)
        return moved


def _write(stack: Stack, messages: list[StreamMessage]) -> int:
    stack.archive.mkdir(parents=True, exist_ok=True)
    path = stack.archive / f"events-{messages[0].sequence:016d}-{messages[-1].sequence:016d}.jsonl.gz"
    fresh = path.with_suffix(".new")
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
    fresh.rename(path)
    folder = os.open(stack.archive, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)
    if sum(1 for _ in Archive(path, messages[0].sequence, messages[-1].sequence).read()) != len(messages):
        raise StackError(f"The archive {path} does not hold what was written; nothing was removed from the stream.")
    return len(messages)


# ---------------------------------------------------------------------------------------------- reading


async def every_event(stack: Stack, js: JetStreamContext) -> AsyncIterator[StreamMessage]:
    """All events there have ever been, the archived ones first."""
    done = 0
    for archived in archives(stack):
        done = archived.last
        for message in archived.read():
            yield message
    async for message in messages_of(js, str(EVENTS.name)):
        if message.sequence > done:
            yield message


async def messages_of(js: JetStreamContext, stream: str) -> AsyncIterator[StreamMessage]:
    """What stands in a stream now."""
    left = (await js.stream_info(stream)).state.messages
    reading = ConsumerConfig(ack_policy=AckPolicy.NONE, inactive_threshold=30, deliver_policy=DeliverPolicy.ALL)
    subscription = await js.pull_subscribe("", stream=stream, config=reading)
    try:
        while left > 0:
            for message in await subscription.fetch(min(left, FETCH), timeout=5):
                left -= 1
                place = message.metadata
                headers = dict(message.headers or {})
                yield StreamMessage(place.sequence.stream, message.subject, headers, message.data, place.timestamp)
    finally:
        await subscription.unsubscribe()
