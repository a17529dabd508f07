"""Makes a hotel of a backup, in an empty home.

All events of the backup become the archive of a new stream. Those that a service may not have handled are published
again, for that service; what waited in an outbox is published as ever. Events that the restored databases do not know
came after the backup: they are named, and written to LATER. They are in the backup's copy of the stream, which is a
little newer than its databases, or in the stream of a home whose database was lost.
"""

import asyncio
import json
import os
import shutil
import tarfile
from collections.abc import Iterable
from contextlib import aclosing
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path

import asyncpg
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import DecodeError
from nats.js import JetStreamContext

from gotohotel.bus.consumer import HANDLED_BY, NOBODY, REDRIVE_FOR
from gotohotel.bus.streams import DEAD_LETTERS as DEAD_LETTERS_STREAM
from gotohotel.bus.streams import EVENTS
from gotohotel.ids import first_id_at
from ops import nats_server, page_store, postgres
from ops.addresses import KEYS
from ops.backup.contents import ARCHIVE, DEAD_LETTERS, HOME, POSTGRES, Contents
from ops.console import Progress
from ops.credentials import Credentials
from ops.errors import StackError
from ops.events import TYPES
from ops.rebuild import rebuild
from ops.services import ORDER_SIGNING, PUBLISHERS
from ops.stack import RESTORING, Stack
from ops.stream import PUBLISHED_AT, StreamMessage, archives_in, jetstream, messages_of, stream_id, write_archive

LATER = "later.jsonl"
CLOCKS_DIFFER = timedelta(minutes=5)  # at most, between those who make the ids of events
OCCUPIED_BY = ("postgres", "nats", "archive", "secrets.json", RESTORING)


@dataclass(frozen=True, slots=True)
class Later:
    """An event that came after the backup: no restored database knows it."""

    id: str
    type: str
    order_id: str
    time: str
    event: dict[str, object]


@dataclass(slots=True)
class Restored:
    """What a restore has done."""

    contents: Contents
    events: int = 0
    sent_again: int = 0
    later: list[Later] = field(default_factory=list)


def restore(stack: Stack, folder: Path, *, lost: Path | None = None) -> Restored:
    """Makes a running hotel of a backup. `lost` is the home of a stopped hotel without its database, whose stream tells
    what came after the backup; it is left as it is.

    Raises StackError if the backup is damaged, or if the home is not empty. A restore that fails leaves a home that
    does not start.
    """
    contents = Contents.read(folder)
    page_store.require_wanted(contents.pages_in)
    if occupied := [name for name in OCCUPIED_BY if (stack.home / name).exists()]:
        raise StackError(f"{stack.home} has {', '.join(occupied)} already: a backup is restored into an empty home.")
    survivors = _read_lost(Stack(lost.resolve(), {}), folder, contents) if lost else []
    stack.home.mkdir(parents=True, exist_ok=True)
    try:
        (stack.home / RESTORING).touch(exist_ok=False)
    except FileExistsError:
        raise StackError(f"Another restore into {stack.home} has just begun.") from None
    done = Restored(contents)
    try:
        _restore_keys(folder / HOME, stack.home)
        _unpack(folder / POSTGRES, stack.home / "postgres")
        stack.up(restoring=lambda: asyncio.run(_restore_events(stack, folder, survivors, done)))
    except BaseException:
        stack.down()
        raise
    return done


def _restore_keys(kept: Path, home: Path) -> None:
    for name in KEYS:
        copy = shutil.copytree if (kept / name).is_dir() else shutil.copy2
        copy(kept / name, home / name)


def _unpack(kept: Path, data: Path) -> None:
    data.mkdir(mode=0o700)
    try:
        for name, place in (("base", data), ("pg_wal", data / "pg_wal")):
            with tarfile.open(kept / f"{name}.tar.gz") as packed:
                packed.extractall(place, filter="tar")
    except (OSError, EOFError, tarfile.TarError) as error:
        raise StackError(f"The databases in {kept} can't be read: {error}") from None
    postgres.give(data)


# ---------------------------------------------------------------------------------------------- what came later


def _may_be_later(contents: Contents, stream: str, message: StreamMessage) -> bool:
    """Whether an event of this stream may have come after the backup; the restored outboxes decide."""
    if stream == contents.stream:
        return message.sequence > contents.last
    return message.headers.get("ce-id", "") >= first_id_at(contents.began_at - CLOCKS_DIFFER)


def _read_lost(hotel: Stack, folder: Path, contents: Contents) -> list[StreamMessage]:
    """What the stream and the archive of a lost hotel know, and the backup may not."""
    if hotel.credentials[ORDER_SIGNING] != Credentials(folder / HOME)[ORDER_SIGNING]:
        raise StackError(f"{hotel.home} is the home of another hotel than the backup's.")
    if hotel.is_up or (hotel.home / "postgres").exists():
        raise StackError(f"{hotel.home} is the home of a hotel that runs, or has its database.")
    found = []
    for archived in archives_in(hotel.archive):
        found += [each for each in archived.read() if _may_be_later(contents, archived.stream, each)]
    return found + asyncio.run(_read_lost_stream(hotel, contents))


async def _read_lost_stream(hotel: Stack, contents: Contents) -> list[StreamMessage]:
    async with nats_server.of_a_stopped_stack(hotel.home, hotel.credentials.all()) as js:
        stream = await stream_id(js)
        async with aclosing(messages_of(js, str(EVENTS.name))) as messages:
            return [each async for each in messages if _may_be_later(contents, stream, each)]


async def _stored_events(stack: Stack) -> set[str]:
    """The ids of the events in the restored outboxes: those of the last days before the backup."""
    found: set[str] = set()
    for name in PUBLISHERS:
        connection = await asyncpg.connect(stack.database_url(name, "postgres"), timeout=3)
        try:
            found |= {str(row["event_id"]) for row in await connection.fetch("SELECT event_id FROM outbox")}
        finally:
            await connection.close()
    return found


def _key(message: StreamMessage) -> str:
    """The event's id: the same event may be in both streams."""
    return message.headers.get("ce-id") or f"{message.subject} {message.sequence}"


def _named(message: StreamMessage) -> Later:
    try:
        event = MessageToDict(TYPES[message.subject].FromString(message.data))
    except (KeyError, DecodeError):  # of another release
        event = {"payload": message.data.hex()}
    return Later(
        id=message.headers.get("ce-id", ""),
        type=message.subject,
        order_id=message.headers.get("ce-subject", ""),
        time=message.headers.get("ce-time", message.time.isoformat()),
        event=event,
    )


def _write_later(home: Path, later: Iterable[Later]) -> None:
    (home / LATER).touch(mode=0o600)  # it has guests' names
    with (home / LATER).open("w") as lines:
        lines.writelines(json.dumps(asdict(each)) + "\n" for each in later)
        lines.flush()
        os.fsync(lines.fileno())


# ---------------------------------------------------------------------------------------------- events


async def _restore_events(stack: Stack, folder: Path, survivors: list[StreamMessage], done: Restored) -> None:
    """Runs while PostgreSQL and NATS run, and no service does."""
    contents, stored = done.contents, await _stored_events(stack)
    later: dict[str, Later] = {}

    def is_known(stream: str, message: StreamMessage) -> bool:
        if message.headers.get("ce-id") in stored or not _may_be_later(contents, stream, message):
            return True
        later[_key(message)] = _named(message)
        return False

    async with jetstream(stack) as js:
        fresh = (await js.stream_info(str(EVENTS.name))).config
        if (fresh.max_bytes or 0) < contents.stream_bytes:
            await js.update_stream(fresh.evolve(max_bytes=contents.stream_bytes))
        stack.archive.mkdir(mode=0o700)
        for archived in archives_in(folder / ARCHIVE):
            known = [each for each in archived.read() if is_known(archived.stream, each)]
            if known:
                done.events += write_archive(stack.archive, archived.stream, known)
            if archived.stream == contents.stream:
                done.sent_again += await _send_again(js, known, contents)
        for letters in archives_in(folder / DEAD_LETTERS):
            for letter in letters.read():
                await _publish(js, letter, letter.headers, stream=str(DEAD_LETTERS_STREAM.name))
    later |= {_key(each): _named(each) for each in survivors if each.headers.get("ce-id") not in stored}
    done.later = sorted(later.values(), key=lambda each: each.time)
    _write_later(stack.home, done.later)
    if contents.pages_in != page_store.POSTGRES:  # the buckets are not copied
        await rebuild(stack, progress=Progress())


async def _send_again(js: JetStreamContext, messages: Iterable[StreamMessage], contents: Contents) -> int:
    """Publishes what a consumer may not have handled, for those consumers; returns how many events."""
    count = 0
    for message in messages:
        only_for = message.headers.get(REDRIVE_FOR)
        have_it = sorted(name for name, last in contents.handled.items() if message.sequence <= last)
        if len(have_it) == len(contents.handled) or only_for in have_it:
            continue
        headers = {PUBLISHED_AT: message.time.isoformat(), **message.headers}
        if only_for in (None, NOBODY) and have_it:
            earlier = filter(None, message.headers.get(HANDLED_BY, "").split(","))
            headers |= {REDRIVE_FOR: NOBODY, HANDLED_BY: ",".join(sorted({*earlier, *have_it}))}
        await _publish(js, message, headers, stream=str(EVENTS.name))
        count += 1
    return count


async def _publish(js: JetStreamContext, message: StreamMessage, headers: dict[str, str], *, stream: str) -> None:
    kept = {name: value for name, value in headers.items() if name != "Nats-Expected-Stream"}
    if kept.get("Nats-Msg-Id") != kept.get("ce-id"):
        # It has a number of the old stream in it: the new one gives it to another message.
        kept["Nats-Msg-Id"] = f"restored/{kept.get('Nats-Msg-Id', message.sequence)}"
    await js.publish(message.subject, message.data, stream=stream, headers=kept)
