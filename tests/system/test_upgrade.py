"""The migrations keep the data that the first release stored."""

import asyncio
import base64
import gzip
import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import asyncpg
import pytest

from gotohotel.schema import KERNEL_MIGRATIONS, migrate
from ops import audit, nats_server, postgres
from ops.services import SANDBOX, SERVICES, owner
from ops.stack import Stack
from tests.conftest import ROOT, Client, wait_for

FIRST = ROOT / "tests" / "first_release"

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
    """Copies the migrations that the first release had in a folder; returns the folder of the copies."""
    then = tmp_path / folder.parent.name / "migrations"
    then.mkdir(parents=True)
    shutil.copy(next(folder.glob("0001_*")), then)
    return then


async def test_orders_hold_their_nights_or_have_given_them_back(scratch_url: str, tmp_path: Path) -> None:
    """After the migration, live orders hold their nights, and ended orders do not."""
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
    """The entries keep every charge, and the first release can no longer write to the ledger."""
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


@pytest.fixture
def home() -> Iterator[Path]:
    """A folder with a short path, because it contains a socket."""
    folder = Path(tempfile.mkdtemp(prefix="gotohotel-"))
    yield folder
    shutil.rmtree(folder)


async def restore_stream(stack: Stack) -> None:
    """Publishes the first release's events in their original order."""
    async with nats_server.as_operator(stack.nats_url()) as js:
        await nats_server.declare_streams(js, events_bytes=256 * 1024**2)
        for line in gzip.decompress((FIRST / "events.jsonl.gz").read_bytes()).splitlines():
            event = json.loads(line)
            await js.publish(event["subject"], base64.b64decode(event["data"]), headers=event["headers"])


def restore(stack: Stack) -> None:
    """Fills empty databases and an empty stream with the data that the first release stored."""
    asyncio.run(postgres.provision(stack.database_url, stack.credentials.all()))
    for name in (*SERVICES, SANDBOX):
        role = SANDBOX if name == SANDBOX else owner(name)
        command = [postgres.program("psql"), "-q", "-v", "ON_ERROR_STOP=1", stack.database_url(name, role)]
        dump = gzip.decompress((FIRST / f"{name}.sql.gz").read_bytes())
        subprocess.run(command, input=dump, check=True, stdout=subprocess.DEVNULL)
    asyncio.run(restore_stream(stack))


def test_a_hotel_of_the_first_release_goes_on_with_this_one(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its orders are served, canceled and refunded, unpaid ones expire, and the audit finds nothing."""
    migrate_to_this_release = Stack._migrate

    def restore_and_migrate(stack: Stack) -> None:
        restore(stack)
        migrate_to_this_release(stack)

    monkeypatch.setattr(Stack, "_migrate", restore_and_migrate)
    stack = Stack.on_free_ports(home)
    try:
        stack.up()
        with closing(Client(stack, subject="alice", role="guest")) as guest:

            def states() -> dict[str, str]:
                return {order["name"]: order["status"] for order in guest.get("/orders")["orders"]}

            ended = {"Guest 2": "CANCELED", "Guest 3": "REJECTED", "Guest 4": "CANCELED"}
            unpaid = {"Guest 5": "EXPIRED", "Guest 6": "EXPIRED"}  # their time to pay was over long ago
            wait_for(lambda: states() == {"Guest 0": "PAID", "Guest 1": "CONFIRMED", **ended, **unpaid})
            pages = {page["name"]: page for page in guest.get("/mypages")["mypages"]}
            assert pages["Guest 2"]["paymentStatus"] == "CANCELED"
            order = pages["Guest 1"]["orderId"]
            guest.post(f"/orders/{order}:cancel", {"reason": "upgrade"})
            wait_for(lambda: guest.get(f"/orders/{order}")["status"] == "CANCELED")
            # The desk's event may arrive before pay_svc's, which contains the amount.
            wait_for(lambda: guest.get(f"/orders/{order}")["refundedAmount"]["units"] == "160000")
        assert not {number: found for number, found in audit.check(stack).items() if found}
    finally:
        stack.down()
