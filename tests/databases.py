"""Databases of tests, on the server of the test stack.

Creating one with a service's schema takes most of a second, so they are emptied after each test and used again.
"""

import uuid
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg

from gotohotel.schema import KERNEL_MIGRATIONS, migrate
from ops.stack import Stack

TABLES = "SELECT tablename FROM pg_tables WHERE schemaname = 'public' AND tablename <> 'schema_migrations'"

# What a test adds or removes: tables, columns, indexes, views, constraints and triggers.
SCHEMA = """
SELECT pg_class.oid, relname, relkind::text, attname, atttypid, attnotnull, attisdropped
FROM pg_class LEFT JOIN pg_attribute ON attrelid = pg_class.oid AND attnum > 0
WHERE relnamespace = 'public'::regnamespace
UNION ALL
SELECT oid, pg_get_constraintdef(oid), '', '', 0, false, false FROM pg_constraint
WHERE connamespace = 'public'::regnamespace
UNION ALL
SELECT oid, tgname, '', '', 0, false, false FROM pg_trigger
ORDER BY 1, 4
"""

END_OTHER_SESSIONS = """
SELECT pg_terminate_backend(pid, 5000)
FROM pg_stat_activity
WHERE datname = current_database()
  AND pid <> pg_backend_pid()
"""


@dataclass(frozen=True, slots=True)
class Migrated:
    """A database after its migrations: its schema, and the rows that they inserted."""

    url: str
    schema: list[asyncpg.Record]
    rows: dict[str, list[asyncpg.Record]]


class Databases:
    """Databases with migrations: those that the current test uses, and those that are free."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._free: defaultdict[tuple[Path, ...], list[Migrated]] = defaultdict(list)
        self.in_use: list[str] = []  # their URLs

    @asynccontextmanager
    async def of(self, *folders: Path) -> AsyncIterator[str]:
        """The URL of a database as the kernel's migrations and these leave it."""
        free = self._free[folders]
        database = free.pop() if free else await self._make(folders)
        self.in_use.append(database.url)
        try:
            yield database.url
        finally:
            self.in_use.remove(database.url)
            if await _emptied(database):
                free.append(database)
            else:
                await drop_database(self._stack, database.url)

    async def _make(self, folders: tuple[Path, ...]) -> Migrated:
        url = await create_database(self._stack)
        await migrate(url, KERNEL_MIGRATIONS, *folders)
        connection = await asyncpg.connect(url)
        try:
            rows = {name: await connection.fetch(f"TABLE {name}") for (name,) in await connection.fetch(TABLES)}
            return Migrated(url, await connection.fetch(SCHEMA), rows)
        finally:
            await connection.close()


async def create_database(stack: Stack) -> str:
    """Creates an empty database; returns its URL."""
    name = f"scratch_{uuid.uuid4().hex[:12]}"  # too short to be a card number, which the audit looks for in logs
    await _as_superuser(stack, f"CREATE DATABASE {name}")
    return stack.database_url(name, "postgres")


async def drop_database(stack: Stack, url: str) -> None:
    """Drops a database, although connections of it may be open."""
    await _as_superuser(stack, f"DROP DATABASE {url.rsplit('/', 1)[-1]} WITH (FORCE)")


async def _as_superuser(stack: Stack, statement: str) -> None:
    admin = await asyncpg.connect(stack.database_url("postgres", "postgres"))
    try:
        await admin.execute(statement)
    finally:
        await admin.close()


async def _emptied(database: Migrated) -> bool:
    """Ends the connections and removes what was stored. Returns False if the schema is another one now."""
    connection: Any = await asyncpg.connect(database.url)
    try:
        await connection.execute(END_OTHER_SESSIONS)
        if await connection.fetch(SCHEMA) != database.schema:
            return False
        await connection.execute(f"TRUNCATE {', '.join(database.rows)} RESTART IDENTITY CASCADE")
        await connection.execute("UPDATE schema_migrations SET applied_at = now()")
        for name, rows in database.rows.items():
            if rows:
                await connection.copy_records_to_table(name, records=rows)
        return True
    finally:
        await connection.close()
