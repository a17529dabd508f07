"""The services' statements that erase phone numbers after the stay. Those of My page are in tests/mypage_svc."""

from datetime import date

import pytest

from gotohotel.database import Database, in_batches
from gotohotel.ids import new_id
from order_svc import store as orders
from pay_svc import store as payments
from reservation_svc import store as reservations

BEFORE = date(2026, 2, 1)
ORDER = """
INSERT INTO orders (id, owner, name, phone_no, room_type, guest_cnt, check_in, check_out, nights_held, currency, amount,
    status, version, created_at, updated_at, expires_at)
VALUES ($1, 'alice', 'A', $2, 'R', 1, $3::text::date - 1, $3::text::date, 1, 'KRW', 1, 'PAID', 1, now(), now(), now())
"""
BOOKING = "jsonb_build_object('name', 'A', 'phone_no', $2::text, 'check_out', $3::text)"
PAYMENT = f"""
INSERT INTO payments (id, order_id, owner, booking, currency, amount, refunded, status, decline_reason, approval_no,
    version, created_at, updated_at)
VALUES ($1, $1, 'alice', {BOOKING}, 'KRW', 1, 0, 'APPROVED', '', '', 1, now(), now())
"""
RESERVATION = f"""
INSERT INTO reservations (order_id, booking, status, version, created_at, updated_at)
VALUES ($1, {BOOKING}, 'RECEIVED', 1, now(), now())
"""
NUMBER = "SELECT {} AS phone_no, {} AS name FROM {} WHERE {} = $1"
IN_BOOKING = ("booking ->> 'phone_no'", "booking ->> 'name'")


@pytest.mark.parametrize(
    ("service", "insert", "erase", "read"),
    [
        ("order", ORDER, orders.ERASE_NUMBERS, NUMBER.format("phone_no", "name", "orders", "id")),
        ("pay", PAYMENT, payments.ERASE_NUMBERS, NUMBER.format(*IN_BOOKING, "payments", "order_id")),
        (
            "reservation",
            RESERVATION,
            reservations.ERASE_NUMBERS,
            NUMBER.format(*IN_BOOKING, "reservations", "order_id"),
        ),
    ],
    ids=["order_svc", "pay_svc", "reservation_svc"],
)
async def test_numbers_of_stays_that_have_ended_are_erased(
    order_database: Database,
    pay_database: Database,
    reservation_database: Database,
    service: str,
    insert: str,
    erase: str,
    read: str,
) -> None:
    """All of them, however many; those of later stays stay, and so do names."""
    database = {"order": order_database, "pay": pay_database, "reservation": reservation_database}[service]
    connection = database.autocommit
    stays = [(new_id(), day) for day in ("2025-12-31", "2026-01-31", "2026-02-01", "2026-03-01")]
    for order, check_out in stays:
        await connection.execute(insert, order, "010-1234-5678", check_out)
    for _ in range(1001):
        await connection.execute(insert, new_id(), "1", "2026-01-01")

    await in_batches(database, erase, BEFORE)

    found = [tuple(await connection.fetchrow(read, order) or ()) for order, _ in stays]
    assert found == [("", "A"), ("", "A"), ("010-1234-5678", "A"), ("010-1234-5678", "A")]
    kept = f"SELECT count(*) FROM ({read.replace('= $1', '<> $1')}) AS others WHERE phone_no = '1'"
    assert await connection.fetchval(kept, new_id()) == 0
