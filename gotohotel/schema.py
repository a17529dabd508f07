"""A service's schema: numbered SQL files, applied once and in order by `gotohotel migrate`."""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import asyncpg
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_delay, wait_random

from gotohotel.database import Database, Row

logger = logging.getLogger(__name__)

MIGRATIONS_LOCK = 0x676F746F  # "goto"

CREATE_MIGRATIONS_TABLE = """
CREATE TABLE IF NOT EXISTS schema_migrations (
    component text NOT NULL,
    number integer NOT NULL,
    name text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (component, number)
)
"""


NOTE_MIGRATION = """
INSERT INTO schema_migrations (component, number, name)
VALUES ($1, $2, $3)
"""

# A migration that waits for a table's lock makes all others queue behind it: it gives up soon and retries.
LOCK_TIMEOUT_SECONDS = 0.3
LOCK_RETRY_SECONDS = 1.0
# A replica that is frozen or disconnected in the middle of a migration loses its locks.
MIGRATION_SESSION = {
    "idle_in_transaction_session_timeout": "10s",
    "idle_session_timeout": "30s",
    "tcp_keepalives_idle": "3",
    "tcp_keepalives_interval": "1",
}
LOCK_PATIENCE_SECONDS = 300.0

# As a file's first line: its statements run one by one, outside any transaction, as CREATE INDEX CONCURRENTLY requires.
# If one fails the whole file runs again, so each statement must be safe to repeat.
OUTSIDE_TRANSACTION = "-- outside a transaction"


class SchemaBehind(Exception):
    """A schema lacks a migration of this release."""


APPLIED = """
SELECT component, number
FROM schema_migrations
"""


async def require_migrations(database: Database, *folders: Path) -> None:
    """Raises SchemaBehind unless every migration of these folders is applied.

    A service's role can't change the schema: `migrate` does, with the owner's role, before the service starts. A schema
    that is ahead, as after a rollback, is accepted.
    """
    try:
        rows = await database.autocommit.fetch(APPLIED)
    except asyncpg.UndefinedTableError:
        rows = []
    applied = {(row["component"], row["number"]) for row in rows}
    missing = [
        f"{component}/{path.name}"
        for component, number, path in _numbered(folders)
        if (component, number) not in applied
    ]
    if missing:
        raise SchemaBehind(f"the schema lacks {', '.join(missing)}; run `gotohotel migrate`")


async def migrate(url: str, *folders: Path, patience_seconds: float = LOCK_PATIENCE_SECONDS) -> None:
    """Applies the numbered SQL files that are not applied yet, each in one transaction, or in none if it begins with
    OUTSIDE_TRANSACTION. Callers that run at the same time wait for one another.

    A statement waits 0.3 s for a lock and is then retried, for `patience_seconds` in all, so that no other user of the
    table waits longer than that. Raises asyncpg.LockNotAvailableError afterwards.
    """
    connection = await asyncpg.connect(
        url, timeout=3, server_settings={"lock_timeout": f"{int(LOCK_TIMEOUT_SECONDS * 1000)}ms", **MIGRATION_SESSION}
    )
    try:
        # Polled, not waited for: CREATE INDEX CONCURRENTLY waits for every session that is waiting inside a statement.
        while not await connection.fetchval("SELECT pg_try_advisory_lock($1)", MIGRATIONS_LOCK):  # noqa: ASYNC110
            await asyncio.sleep(0.2)
        await connection.execute(CREATE_MIGRATIONS_TABLE)
        rows = await connection.fetch(APPLIED)
        applied = {(row["component"], row["number"]) for row in rows}
        for component, number, path in _numbered(folders):
            if (component, number) not in applied:
                migration = Migration(component, number, path.name, path.read_text())
                await _apply_patiently(connection, migration, patience_seconds)
                logger.info("applied migration %s/%s", component, path.name)
    finally:
        await connection.close()


@dataclass(frozen=True, slots=True)
class Migration:
    """One numbered SQL file of a component."""

    component: str
    number: int
    name: str
    sql: str


async def _apply_patiently(
    connection: "asyncpg.Connection[Row]", migration: Migration, patience_seconds: float
) -> None:
    def warn(state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        logger.warning("migration %s/%s waits for a lock: %r", migration.component, migration.name, error)

    async for attempt in AsyncRetrying(
        retry=retry_if_exception_type((asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError)),
        stop=stop_after_delay(patience_seconds),
        wait=wait_random(0.5 * LOCK_RETRY_SECONDS, 1.5 * LOCK_RETRY_SECONDS),
        before_sleep=warn,
        reraise=True,
    ):
        with attempt:
            await _apply(connection, migration)


def statements_of(sql: str) -> list[str]:
    """What is sent to the server one by one: the whole file, or each statement if no transaction is allowed."""
    return list(filter(str.strip, sql.split(";\n"))) if sql.startswith(OUTSIDE_TRANSACTION) else [sql]


async def _apply(connection: "asyncpg.Connection[Row]", migration: Migration) -> None:
    if migration.sql.startswith(OUTSIDE_TRANSACTION):
        for statement in statements_of(migration.sql):
            await connection.execute(statement)
        await connection.execute(NOTE_MIGRATION, migration.component, migration.number, migration.name)
        return
    async with connection.transaction():
        await connection.execute(migration.sql)
        await connection.execute(NOTE_MIGRATION, migration.component, migration.number, migration.name)


def _numbered(folders: Sequence[Path]) -> list[tuple[str, int, Path]]:
    return [
        (folder.parent.name, int(path.name.split("_")[0]), path)
        for folder in folders
        for path in sorted(folder.glob("[0-9]*_*.sql"))
    ]


KERNEL_MIGRATIONS = Path(__file__).parent / "migrations"
