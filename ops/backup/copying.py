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

from nats.js import JetStreamContext

from gotohotel.bus.streams import DEAD_LETTERS as DEAD_LETTERS_STREAM
from gotohotel.bus.streams import EVENTS
from ops import postgres
from ops.backup.contents import ARCHIVE, DEAD_LETTERS, HOME, KEYS, POSTGRES, Contents
from ops.errors import StackError
from ops.stack import Stack
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


def back_up(stack: Stack, folder: Path) -> int:
    """Makes a backup in a new folder; returns how many events it has. Raises StackError if the folder is not empty."""
    if folder.exists() and any(folder.iterdir()):
        raise StackError(f"{folder} is not empty: a backup needs a new folder.")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # it holds passwords, keys, and guests' names
    for name in (ARCHIVE, DEAD_LETTERS):
        (folder / name).mkdir()
    with archive_locked(stack):
        contents = asyncio.run(_copy(stack, folder))
    contents.write(folder)
    return sum(each.last - each.first + 1 for each in archives_in(folder / ARCHIVE))


async def _copy(stack: Stack, folder: Path) -> Contents:
    async with jetstream(stack) as js:
        contents = await _contents(js)
        _copy_keys(stack.home, folder / HOME)
        await _copy_databases(stack, folder / POSTGRES)
        for archived in archives(stack):
            shutil.copy2(archived.path, folder / ARCHIVE)
        done = await archived_until(stack, js)
        await _copy_stream(js, str(EVENTS.name), folder / ARCHIVE, contents.stream, after=done)
        await _copy_stream(js, str(DEAD_LETTERS_STREAM.name), folder / DEAD_LETTERS, contents.stream)
    return contents


async def _contents(js: JetStreamContext) -> Contents:
    began_at, name = datetime.now(UTC), str(EVENTS.name)
    last = int((await js.stream_info(name)).state.last_seq)
    handled = {
        str(each.config.durable_name): _handled(each, last)
        for each in await js.consumers_info(name)
        if each.config.durable_name
    }
    return Contents(began_at=began_at, stream=await stream_id(js), last=last, handled=handled)


def _handled(consumer: Any, last: int) -> int:
    """The event up to which a consumer had handled all of its own; `last` was the stream's last one before."""
    if not consumer.num_pending and not consumer.num_ack_pending:
        return last
    return int(consumer.ack_floor.stream_seq) if consumer.ack_floor else 0


def _copy_keys(home: Path, folder: Path) -> None:
    folder.mkdir()
    for name in KEYS:
        copy = shutil.copytree if (home / name).is_dir() else shutil.copy2
        copy(home / name, folder / name)


async def _copy_databases(stack: Stack, folder: Path) -> None:
    copying = await asyncio.create_subprocess_exec(
        postgres.program("pg_basebackup"),
        *("--host=127.0.0.1", f"--port={stack.ports['postgres']}", "--username=postgres", "--no-password"),
        *(f"--pgdata={folder}", "--format=tar", "--gzip", "--wal-method=stream", "--checkpoint=fast"),
        env={**os.environ, "PGPASSWORD": stack.credentials["postgres"]},
        stderr=asyncio.subprocess.PIPE,
    )
    _, said = await copying.communicate()
    if copying.returncode != 0:
        raise StackError(f"PostgreSQL can't be copied: {said.decode(errors='replace').strip()}")


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
