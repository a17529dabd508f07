"""What the first release stored is carried over by the migrations since."""

import shutil
from pathlib import Path

import asyncpg
import pytest

from gotohotel.database import KERNEL_MIGRATIONS, migrate
from tests.conftest import ROOT

ORDERS = """
INSERT INTO orders (
    id, owner, name, phone_no, room_type, guest_cnt, check_in, check_out, nights_held, currency, amount, status,
    version, created_at, updated_at, expires_at
)
SELECT uuidv7(), 'a', 'A', '', 'P', 1, '2026-01-01', '2026-01-02', 1, 'KRW', 1, status, 1, now(), now(), now()
FROM unnest(ARRAY['PAYMENT_PENDING', 'PAID', 'CONFIRMED', 'CANCELING', 'CANCELED', 'REJECTED', 'EXPIRED']) AS status
"""
LEDGER = """
INSERT INTO ledger (key, order_id, outcome, reason, currency, amount, approval_no, refunded_at)
VALUES
    ('00000000-0000-7000-8000-000000000001', 'charged', 'CHARGED', '', 'KRW', 5, 'A1', NULL),
    ('00000000-0000-7000-8000-000000000002', 'given back', 'CHARGED', '', 'KRW', 7, 'A2', now()),
    ('00000000-0000-7000-8000-000000000003', 'refused', 'REFUSED', 'CARD_DECLINED', 'KRW', 9, '', NULL)
"""


def first_release(folder: Path, tmp_path: Path) -> Path:
    """The migrations that the first release had of a folder."""
    then = tmp_path / folder.parent.name / "migrations"
    then.mkdir(parents=True)
    shutil.copy(next(folder.glob("0001_*")), then)
    return then


async def test_orders_hold_their_nights_or_have_given_them_back(scratch_url: str, tmp_path: Path) -> None:
    """Those that had given them back give them back no second time."""
    now = ROOT / "order_svc" / "migrations"
    await migrate(scratch_url, first_release(KERNEL_MIGRATIONS, tmp_path), first_release(now, tmp_path))
    connection = await asyncpg.connect(scratch_url)
    await connection.execute(ORDERS)

    await migrate(scratch_url, KERNEL_MIGRATIONS, now)

    holding = await connection.fetchval("SELECT array_agg(status ORDER BY status) FROM orders WHERE holds_nights")
    assert holding == ["CONFIRMED", "PAID", "PAYMENT_PENDING"]
    await connection.close()


async def test_the_ledger_becomes_entries_and_the_first_release_cannot_charge_beside_it(
    scratch_url: str, tmp_path: Path
) -> None:
    """Nothing that was charged is charged again, by whichever release."""
    now = ROOT / "pay_svc" / "sandbox" / "migrations"
    await migrate(scratch_url, first_release(now, tmp_path))
    connection = await asyncpg.connect(scratch_url)
    await connection.execute(LEDGER)

    await migrate(scratch_url, now)

    rows = await connection.fetch("SELECT order_id, kind, amount FROM entries ORDER BY order_id, number")
    assert [tuple(row) for row in rows] == [
        ("charged", "CHARGE", 5),
        ("given back", "CHARGE", 7),
        ("given back", "REFUND", 7),
        ("refused", "REFUSAL", 9),
    ]
    with pytest.raises(asyncpg.PostgresError):
        await connection.execute(LEDGER)
    await connection.close()
