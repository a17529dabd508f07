"""The audit itself: each invariant is broken on purpose, reported, and mended."""

import asyncio
import subprocess
import sys

import nats
import pytest

from ops import audit
from tests.conftest import Client, Hotel
from tests.system.test_journey import query

CARD = "4242 4242 4242 4242"
BROKEN = {
    "A1": (
        "order_svc",
        "UPDATE orders SET id = uuidv7() WHERE id = $1 RETURNING id::text",
        "UPDATE orders SET id = $1 WHERE id = $2::uuid",
    ),
    "A2": (
        "pay_svc",
        "UPDATE payments SET approved_at = NULL WHERE order_id = $1",
        "UPDATE payments SET approved_at = updated_at WHERE order_id = $1",
    ),
    "A3": (
        "sandbox",
        "INSERT INTO entries (key, kind, order_id, reason, currency, amount, approval_no) "
        "SELECT key, 'REFUND', order_id, '', currency, amount, '' FROM entries WHERE order_id = $1 AND kind = 'CHARGE'",
        "DELETE FROM entries WHERE order_id = $1 AND kind = 'REFUND'",
    ),
    "A4": (
        "order_svc",
        "UPDATE allotment SET held = held + 1 FROM orders WHERE id = $1 AND night = check_in "
        "AND allotment.room_type = orders.room_type",
        "UPDATE allotment SET held = held - 1 FROM orders WHERE id = $1 AND night = check_in "
        "AND allotment.room_type = orders.room_type",
    ),
    "A5": (
        "pay_svc",
        "UPDATE payments SET status = 'APPROVED' WHERE status = 'CANCELED' AND $1::text IS NOT NULL",
        "UPDATE payments SET status = 'CANCELED' WHERE canceled_at IS NOT NULL AND $1::text IS NOT NULL",
    ),
    "A6": (
        "pay_svc",
        "INSERT INTO outbox SELECT uuidv7(), $1, 99, type, payload, traceparent, occurred_at, now() "
        "FROM outbox LIMIT 1",
        "DELETE FROM outbox WHERE aggregate_id = $1 AND aggregate_version = 99",
    ),
    "A7": (
        "mypage_svc",
        "UPDATE mypages SET facts = facts - 'reservation/1' || jsonb_build_object('x/1', facts -> 'reservation/1') "
        "|| jsonb_build_object('x/1', jsonb_set(facts -> 'reservation/1', '{event}', '\"ReservationRejected\"')) "
        "WHERE order_id = $1",
        "UPDATE mypages SET facts = facts - 'x/1' || jsonb_build_object('reservation/1', "
        "jsonb_set(facts -> 'x/1', '{event}', '\"ReservationTaken\"')) WHERE order_id = $1",
    ),
    "A9": (
        "order_svc",
        "UPDATE orders SET status = 'CANCELING', cancel_asked_at = now() - interval '6 minutes' WHERE id = $1",
        "UPDATE orders SET status = 'PAID', cancel_asked_at = NULL WHERE id = $1",
    ),
    "A10": (
        "order_svc",
        "UPDATE orders SET phone_no = '4242 4242 4242 4242' WHERE id = $1",
        "UPDATE orders SET phone_no = '' WHERE id = $1",
    ),
}


def violated(hotel: Hotel, *, patience_seconds: float = 0) -> dict[str, list[str]]:
    """The violations that the audit reports, by invariant."""
    found = audit.check(hotel.stack, patience_seconds=patience_seconds)
    return {number: violations for number, violations in found.items() if violations}


@pytest.mark.parametrize("number", BROKEN)
def test_a_broken_invariant_is_reported(hotel: Hotel, guest: Client, number: str) -> None:
    """By its number; and no longer once it is mended."""
    canceled = hotel.order(guest)
    guest.request("DELETE", f"/orders/{canceled['id']}").raise_for_status()
    hotel.page_with(canceled["id"], status="CANCELED", reservationStatus="CANCELED")
    order_id = hotel.order(guest)["id"]
    hotel.page_with(order_id, reservationStatus="RECEIVED")
    assert violated(hotel, patience_seconds=30) == {}
    database, damage, mend = BROKEN[number]

    moved_to = query(hotel, database, damage, order_id)
    try:
        assert number in violated(hotel)
    finally:
        query(hotel, database, mend, order_id, *([moved_to] if moved_to else []))

    assert violated(hotel, patience_seconds=30) == {}


def test_letters_between_digits_are_no_card_number(hotel: Hotel, guest: Client) -> None:
    """No guest can make the audit cry wolf, and no issuer of tokens whose subjects are long numbers."""
    hotel.order(guest, name="4a2b" * 8)
    hotel.order(hotel.caller(subject="110424242424242424200"))

    assert violated(hotel, patience_seconds=30) == {}


def test_a_card_number_is_reported_whoever_has_it_for_a_subject(hotel: Hotel, guest: Client) -> None:
    """An id that is passed over must not hide a leak."""
    order = hotel.order(guest)["id"]
    hide = "UPDATE orders SET owner = $2, phone_no = $2 WHERE id = $1"
    query(hotel, "order_svc", hide, order, CARD)
    try:
        found = violated(hotel)["A10"]
    finally:
        mend = "UPDATE orders SET owner = $2, phone_no = '' WHERE id = $1"
        query(hotel, "order_svc", mend, order, guest.subject)

    assert {"a card number in order_svc.orders.owner", "a card number in order_svc.orders.phone_no"} <= set(found)
    assert violated(hotel, patience_seconds=30) == {}


def test_a_card_number_in_a_header_of_the_stream_is_reported(hotel: Hotel) -> None:
    """Headers are kept as long as what they stand over."""

    async def bury() -> int:
        client = await nats.connect(hotel.stack.nats_url())
        try:
            return (await client.jetstream().publish("gotohotel.test.v1.Nothing", b"", headers={"x": CARD})).seq
        finally:
            await client.close()

    async def remove(number: int) -> None:
        client = await nats.connect(hotel.stack.nats_url())
        await client.jetstream().delete_msg("EVENTS", number)
        await client.close()

    number = asyncio.run(bury())
    try:
        assert violated(hotel)["A10"] == [f"a card number in the stream, message {number}"]
    finally:
        asyncio.run(remove(number))


def test_a_dead_letter_is_reported_and_ends_the_command_with_a_failure(hotel: Hotel) -> None:
    """A11, through the command line that an operator uses."""

    async def bury(*, purge: bool) -> None:
        client = await nats.connect(hotel.stack.nats_url())
        if purge:
            await client.jetstream().purge_stream("DEAD_LETTERS")
        else:
            headers = {"x-dead-subject": "gotohotel.x", "x-dead-reason": "test", "x-dead-consumer": "nobody"}
            await client.jetstream().publish("dead.nobody", b"", headers=headers)
        await client.close()

    asyncio.run(bury(purge=False))
    try:
        command = [sys.executable, "-c", AUDIT, str(hotel.stack.home)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    finally:
        asyncio.run(bury(purge=True))

    assert done.returncode == 1
    assert "A11  VIOLATED" in done.stdout
    assert "gotohotel.x for nobody: test" in done.stdout


AUDIT = """
import os, sys
os.environ["GOTOHOTEL_HOME"] = sys.argv[1]
from ops import audit
audit.PATIENCE_SECONDS = 0
from ops.__main__ import main
main(["audit"])
"""
