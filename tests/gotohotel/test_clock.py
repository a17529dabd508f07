"""The database's time, on a machine whose own clock is wrong."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
import time_machine

from gotohotel.clock import Clock
from gotohotel.database import Database


async def test_the_databases_time_decides(order_database: Database, caplog: pytest.LogCaptureFixture) -> None:
    """The time is right even if the machine's clock is wrong, and the difference is logged."""
    true = datetime.now(UTC)
    with time_machine.travel(true + timedelta(minutes=20)):
        clock = Clock()
        await clock.synchronize(order_database, at_any_price=True)

        assert abs(clock.now() - true) < timedelta(seconds=10)
    assert "clock is +1200" in caplog.text or "clock is +1199" in caplog.text


async def test_a_slow_answer_says_too_little(order_database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow reading is ignored, and the last good one is used."""
    clock = Clock()
    await clock.synchronize(order_database, at_any_price=True)
    monkeypatch.setattr("gotohotel.clock.READ", "SELECT now() + interval '1 hour' FROM pg_sleep(0.3)")

    await clock.synchronize(order_database)

    assert abs(clock.now() - datetime.now(UTC)) < timedelta(minutes=1)


async def test_the_quickest_of_some_readings_counts(order_database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first reading on a new connection is slow, and half of its duration would be the error of the clock."""
    delays = iter([0.15, 0.0, 0.15])
    fetchval = order_database.autocommit.fetchval

    async def slow_fetchval(query: str) -> object:
        read = await fetchval(query)
        await asyncio.sleep(next(delays))
        return read

    monkeypatch.setattr(order_database.autocommit, "fetchval", slow_fetchval)
    clock = Clock()
    await clock.synchronize(order_database, at_any_price=True)

    assert abs(clock.now() - datetime.now(UTC)) < timedelta(seconds=0.05)
