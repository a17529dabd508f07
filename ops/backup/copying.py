"""Copies a hotel into a folder while it runs.

The databases are copied as of one moment, as if all processes had been killed then. What the consumers had handled is
noted before, and the stream is copied after: so every event that the databases know is in the copy of the stream, or
still waits in an outbox, and an event counts as handled only if its effect was copied.
"""

import asyncio
import os
import shutil
from contextlib import aclosing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from nats.js import JetStreamContext

from gotohotel.bus.streams import DEAD_LETTERS as DEAD_LETTERS_STREAM
from gotohotel.bus.streams import EVENTS
from ops import page_store, postgres
from ops.addresses import Addresses
from ops.backup.contents import ARCHIVE, DEAD_LETTERS, HOME, POSTGRES, Contents
from ops.errors import StackError
from ops.services import MYPAGE
from ops.stream import (
    ARCHIVE_FILE_EVENTS,
    StreamMessage,
    archive_locked,
    archived_until,
    archives,
    archives_in,
    jetstream,
    messages_of,
    stream_id,
    write_archive,
)

STALLED_SECONDS = 60.0  # pg_basebackup itself waits for a frozen server for ever


def back_up(stack: Addresses, folder: Path) -> int:
    """Makes a backup in a new folder; returns how many events it has. One that fails leaves nothing with that name.

    Raises StackError if the folder exists.
    """
    fresh = folder.with_name(f"{folder.name}.new")
    for each, why in ((folder, "a backup needs a new folder"), (fresh, "if a backup was killed, remove it")):
        if each.exists():
            raise StackError(f"{each} exists: {why}.")
    try:
        fresh.mkdir(mode=0o700, parents=True)  # it will hold passwords, keys, and guests' names
    except OSError as error:
        raise StackError(f"{fresh} can't be made: {error.strerror}") from None
    try:
        for name in (ARCHIVE, DEAD_LETTERS):
            (fresh / name).mkdir()
        with archive_locked(stack):
            contents = asyncio.run(_copy(stack, fresh))
        contents.write(fresh)
        os.sync()
        fresh.rename(folder)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    return sum(each.last - each.first + 1 for each in archives_in(folder / ARCHIVE))


async def _copy(stack: Addresses, folder: Path) -> Contents:
    async with jetstream(stack) as js:
        contents = await _contents(stack, js)
        stack.copy_keys(folder / HOME)
        await _copy_databases(stack, folder / POSTGRES)
        # Before the events: a letter that is sent again meanwhile is in both copies, not in none.
        await _copy_stream(js, str(DEAD_LETTERS_STREAM.name), folder / DEAD_LETTERS, contents.stream)
        for archived in archives(stack):
            shutil.copy2(archived.path, folder / ARCHIVE)
        done = await archived_until(stack, js)
        await _copy_stream(js, str(EVENTS.name), folder / ARCHIVE, contents.stream, after=done)
    return contents


async def _contents(stack: Addresses, js: JetStreamContext) -> Contents:
    began_at, stream = datetime.now(UTC), await js.stream_info(str(EVENTS.name))
    last = int(stream.state.last_seq)
    handled = {
        str(each.config.durable_name): _handled(each, last)
        for each in await js.consumers_info(str(EVENTS.name))
        if each.config.durable_name
    }
    return Contents(
        began_at=began_at,
        stream=await stream_id(js),
        stream_bytes=int(stream.config.max_bytes or 0),
        last=last,
        handled=handled,
        pages_in=await page_store.place(stack.database_url(MYPAGE, MYPAGE)),
    )


def _handled(consumer: Any, last: int) -> int:
    """The event up to which a consumer had handled all of its own; `last` was the stream's last one before."""
    if not consumer.num_pending and not consumer.num_ack_pending:
        return last
    return int(consumer.ack_floor.stream_seq) if consumer.ack_floor else 0


async def _copy_databases(stack: Addresses, folder: Path) -> None:
    server = urlsplit(stack.database_url("postgres", "postgres"))
    copying = await asyncio.create_subprocess_exec(
        postgres.program("pg_basebackup"),
        *(f"--host={server.hostname}", f"--port={server.port or 5432}", "--username=postgres", "--no-password"),
        *(f"--pgdata={folder}", "--format=tar", "--gzip", "--wal-method=stream", "--checkpoint=fast"),
        env={**os.environ, "PGPASSWORD": server.password or ""},
        stderr=asyncio.subprocess.PIPE,
    )
    communicating = asyncio.create_task(copying.communicate())
    copied = -1
    while not (await asyncio.wait([communicating], timeout=STALLED_SECONDS))[0]:
        before, copied = copied, _size(folder)
        if copied == before:
            copying.kill()
    _, said = await communicating
    if copying.returncode != 0:
        reason = said.decode(errors="replace").strip() or f"it has sent nothing for {STALLED_SECONDS:.0f} s"
        raise StackError(f"PostgreSQL can't be copied: {reason}")


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*"))


async def _copy_stream(js: JetStreamContext, name: str, folder: Path, stream: str, *, after: int = 0) -> None:
    batch: list[StreamMessage] = []
    async with aclosing(messages_of(js, name)) as messages:
        async for message in messages:
            if message.sequence > after:
                batch.append(message)
            if len(batch) == ARCHIVE_FILE_EVENTS:
                write_archive(folder, stream, batch)
                batch = []
    if batch:
        write_archive(folder, stream, batch)
