"""Makes a hotel of a backup, in a home without a database.

All events of the backup become the archive of a new stream. Those that a service may not have handled are published
again, for that service; what waited in an outbox is published as ever. Events that the restored databases do not know
came after the backup: they are set aside and named, whether they are in the backup's copy of the stream, which is a
little newer than its databases, or in a stream that has survived in this home.
"""

import asyncio
import json
import shutil
import tarfile
from collections.abc import Callable, Iterable
from contextlib import aclosing, suppress
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path

import asyncpg
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import DecodeError
from nats.js import JetStreamContext
from nats.js.errors import NotFoundError

from gotohotel.bus.consumer import HANDLED_BY, NOBODY, REDRIVE_FOR
from gotohotel.bus.streams import DEAD_LETTERS as DEAD_LETTERS_STREAM
from gotohotel.bus.streams import EVENTS
from gotohotel.ids import first_id_at
from ops import page_store, postgres
from ops.backup.contents import ARCHIVE, DEAD_LETTERS, HOME, KEYS, POSTGRES, Contents
from ops.console import Progress
from ops.errors import StackError
from ops.events import TYPES
from ops.provisioning import provision
from ops.rebuild import rebuild
from ops.services import PUBLISHERS
from ops.settings import stream_bytes
from ops.stack import RESTORING, Stack
from ops.stream import (
    PUBLISHED_AT,
    StreamMessage,
    archives,
    archives_in,
    jetstream,
    messages_of,
    stream_id,
    write_archive,
)

LATER = "later.jsonl"
CLOCKS_DIFFER = timedelta(minutes=5)  # at most, between those who make the ids of events

# Whether an event of this stream came after the backup.
IsLater = Callable[[str, StreamMessage], bool]


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

    events: int = 0
    sent_again: int = 0
    later: list[Later] = field(default_factory=list)


def restore(stack: Stack, folder: Path) -> Restored:
    """Makes a running hotel of a backup. After an interruption it can be run again.

    Raises StackError if the stack runs, or if its home has a database.
    """
    contents = Contents.read(folder)
    if stack.is_up:
        raise StackError("The stack is up: run `make down` first.")
    data, marker = stack.home / "postgres", stack.home / RESTORING
    if data.exists() and not marker.exists():
        raise StackError(f"{data} exists: a backup is restored beside no other database. Move it away first.")
    stack.home.mkdir(parents=True, exist_ok=True)
    marker.touch()
    shutil.rmtree(data, ignore_errors=True)  # of an interrupted restore
    _restore_keys(folder / HOME, stack.home)
    _unpack(folder / POSTGRES, data)
    done = Restored()
    stack.up(restoring=lambda: asyncio.run(_restore_events(stack, folder, contents, done)))
    if page_store.wanted() == page_store.NATS:
        asyncio.run(rebuild(stack, progress=Progress()))
    return done


def _restore_keys(kept: Path, home: Path) -> None:
    for name in KEYS:
        if (kept / name).is_dir():
            shutil.copytree(kept / name, home / name, dirs_exist_ok=True)
        else:
            shutil.copy2(kept / name, home / name)


def _unpack(kept: Path, data: Path) -> None:
    """Unpacks the databases; the folder gets its name when it is complete."""
    fresh = data.with_name("postgres.new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(mode=0o700)
    try:
        for name, place in (("base", fresh), ("pg_wal", fresh / "pg_wal")):
            with tarfile.open(kept / f"{name}.tar.gz") as packed:
                packed.extractall(place, filter="tar")
    except (OSError, EOFError, tarfile.TarError) as error:
        raise StackError(f"The databases in {kept} can't be read: {error}") from None
    postgres.give(fresh)
    fresh.rename(data)


async def _restore_events(stack: Stack, folder: Path, contents: Contents, done: Restored) -> None:
    """Runs while PostgreSQL and NATS run, and no service does."""
    stored = await _stored_events(stack)

    def is_later(stream: str, message: StreamMessage) -> bool:
        """Whether no restored database knows an event of this stream."""
        event_id = message.headers.get("ce-id", "")
        if event_id in stored:
            return False
        if stream == contents.stream:
            return message.sequence > contents.last
        return event_id >= first_id_at(contents.began_at - CLOCKS_DIFFER)

    async with jetstream(stack) as js:
        await _set_survivors_aside(stack, js, is_later)
        for name in (str(EVENTS.name), str(DEAD_LETTERS_STREAM.name)):
            with suppress(NotFoundError):
                await js.delete_stream(name)
    await provision(stack, stream_bytes=stream_bytes(stack.home))
    async with jetstream(stack) as js:
        stack.archive.mkdir(mode=0o700, exist_ok=True)
        for archived in archives_in(folder / ARCHIVE):
            known, later = _parted(archived.stream, archived.read(), is_later)
            _note_later(stack, later)
            if known:
                done.events += write_archive(stack.archive, archived.stream, known)
            if archived.stream == contents.stream:
                done.sent_again += await _send_again(js, known, contents)
        for letters in archives_in(folder / DEAD_LETTERS):
            for letter in letters.read():
                await _publish(js, letter, letter.headers, stream=str(DEAD_LETTERS_STREAM.name))
    done.later = _read_later(stack)


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


async def _set_survivors_aside(stack: Stack, js: JetStreamContext, is_later: IsLater) -> None:
    """Notes what a stream and an archive that have survived in this home know, and the backup does not."""
    for archived in archives(stack):
        _note_later(stack, _parted(archived.stream, archived.read(), is_later)[1])
    stream = await stream_id(js)
    async with aclosing(messages_of(js, str(EVENTS.name))) as messages:
        async for message in messages:
            if is_later(stream, message):
                _note_later(stack, [message])
    aside = stack.home / "archive.before"
    if aside.exists():
        shutil.rmtree(stack.archive, ignore_errors=True)  # of an interrupted restore
    elif stack.archive.exists():
        stack.archive.rename(aside)


def _parted(
    stream: str, messages: Iterable[StreamMessage], is_later: IsLater
) -> tuple[list[StreamMessage], list[StreamMessage]]:
    """What the restored databases know, and what came later."""
    known: list[StreamMessage] = []
    later: list[StreamMessage] = []
    for message in messages:
        (later if is_later(stream, message) else known).append(message)
    return known, later


def _note_later(stack: Stack, messages: Iterable[StreamMessage]) -> None:
    """Writes them down, before anything is deleted."""
    file = stack.home / LATER
    file.touch(mode=0o600)
    with file.open("a") as lines:
        for message in messages:
            try:
                event = MessageToDict(TYPES[message.subject].FromString(message.data))
            except (KeyError, DecodeError):  # of another release
                event = {"payload": message.data.hex()}
            kept = Later(
                id=message.headers.get("ce-id", ""),
                type=message.subject,
                order_id=message.headers.get("ce-subject", ""),
                time=message.headers.get("ce-time", message.time.isoformat()),
                event=event,
            )
            lines.write(json.dumps(asdict(kept)) + "\n")


def _read_later(stack: Stack) -> list[Later]:
    """All that was noted, each event once."""
    noted = (Later(**json.loads(line)) for line in (stack.home / LATER).read_text().splitlines())
    return sorted({each.id: each for each in noted}.values(), key=lambda each: each.time)


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
    headers = {name: value for name, value in headers.items() if name != "Nats-Expected-Stream"}
    await js.publish(message.subject, message.data, stream=stream, headers=headers)
