"""Migrations and transactions on real PostgreSQL."""

import asyncio
from pathlib import Path

import asyncpg
import pytest

from gotohotel.database import migrate, open_database


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A component with two migrations."""
    migrations = tmp_path / "inn" / "migrations"
    migrations.mkdir(parents=True)
    (migrations / "0001_rooms.sql").write_text("CREATE TABLE rooms (id integer PRIMARY KEY);")
    (migrations / "0002_first.sql").write_text("INSERT INTO rooms VALUES (1);")
    return migrations


async def test_replicas_that_start_together_apply_each_migration_once(scratch_url: str, folder: Path) -> None:
    """The second waits for the first and finds nothing to do."""
    await asyncio.gather(*(migrate(scratch_url, folder) for _ in range(5)))

    connection = await asyncpg.connect(scratch_url)
    assert await connection.fetchval("SELECT count(*) FROM rooms") == 1
    assert await connection.fetchval("SELECT count(*) FROM schema_migrations") == 2
    await connection.close()


async def test_a_migration_that_fails_leaves_nothing_behind(scratch_url: str, folder: Path) -> None:
    """Its statements and its number are one transaction."""
    (folder / "0003_bad.sql").write_text("INSERT INTO rooms VALUES (2); SELECT 1/0;")

    with pytest.raises(asyncpg.DivisionByZeroError):
        await migrate(scratch_url, folder)

    connection = await asyncpg.connect(scratch_url)
    assert await connection.fetchval("SELECT count(*) FROM rooms") == 1
    assert await connection.fetchval("SELECT max(number) FROM schema_migrations") == 2
    await connection.close()


async def test_a_transaction_is_all_or_nothing(scratch_url: str, folder: Path) -> None:
    """An exception rolls back."""
    await migrate(scratch_url, folder)
    async with open_database(scratch_url, name="test", pool_size=2) as database:

        async def fail() -> None:
            async with database.transaction() as connection:
                await connection.execute("INSERT INTO rooms VALUES (7)")
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await fail()

        assert await database.autocommit.fetchval("SELECT count(*) FROM rooms WHERE id = 7") == 0
