"""The audit itself: each invariant is broken on purpose, reported, and repaired.

Long because every invariant is broken once.
"""

import asyncio
import re
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import nats
import pytest

from ops import audit
from tests.command_line import gotohotel
from tests.conftest import Client, Hotel, wait_for
from tests.system.test_journey import query
from tests.system.test_operator import in_jetstream, letters

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
    "A14": (
        "mypage_svc",
        "UPDATE mypages SET facts = facts #- '{order/1,actor_role}' WHERE order_id = $1",
        "UPDATE mypages SET facts = jsonb_set(facts, '{order/1,actor_role}', '\"GUEST\"') WHERE order_id = $1",
    ),
    "A10": (
        "order_svc",
        "UPDATE orders SET phone_no = '4242 4242 4242 4242' WHERE id = $1",
        "UPDATE orders SET phone_no = '' WHERE id = $1",
    ),
}


# Missing rows: the invariant that reports them, the database, the damage and its repair. $1 is a paid order's id.
MOVED = "00000000-0000-7000-8000-00000000dead"
MISSING = {
    "the order": (
        "A1",
        "order_svc",
        f"UPDATE orders SET id = '{MOVED}' WHERE id = $1",
        f"UPDATE orders SET id = $1 WHERE id = '{MOVED}'",
    ),
    "the payment": (
        "A2",
        "pay_svc",
        f"UPDATE payments SET order_id = '{MOVED}' WHERE order_id = $1",
        f"UPDATE payments SET order_id = $1 WHERE order_id = '{MOVED}'",
    ),
    "the approval": (
        "A3",
        "pay_svc",
        "UPDATE payments SET approved_at = NULL WHERE order_id = $1",
        "UPDATE payments SET approved_at = updated_at WHERE order_id = $1",
    ),
    "the charge": (
        "A3",
        "sandbox",
        f"UPDATE entries SET order_id = '{MOVED}' WHERE order_id = $1::text",
        f"UPDATE entries SET order_id = $1::text WHERE order_id = '{MOVED}'",
    ),
    "a night": (
        "A4",
        "order_svc",
        "UPDATE allotment SET night = '2000-01-01' FROM orders WHERE id = $1 AND night = "
        "check_in AND allotment.room_type = orders.room_type",
        "UPDATE allotment SET night = check_in FROM orders WHERE id = $1 AND night = "
        "'2000-01-01' AND allotment.room_type = orders.room_type",
    ),
    "the hold": (
        "A4",
        "order_svc",
        "UPDATE orders SET holds_nights = false WHERE id = $1",
        "UPDATE orders SET holds_nights = true WHERE id = $1",
    ),
    "a room type's copy": (
        "A4",
        "reservation_svc",
        "INSERT INTO room_types SELECT 'Nowhere', display_name, capacity, max_guests, "
        "currency, nightly_rate, 1 FROM room_types WHERE $1::text IS NOT NULL LIMIT 1",
        "DELETE FROM room_types WHERE id = 'Nowhere' AND $1::text IS NOT NULL",
    ),
    "the payment of a terminal event": (
        "A5",
        "pay_svc",
        f"UPDATE payments SET order_id = '{MOVED}' WHERE order_id = (SELECT order_id FROM "
        "payments WHERE status = 'CANCELED' AND $1::text IS NOT NULL ORDER BY order_id LIMIT "
        "1)",
        None,
    ),
    "the last event": (
        "A6",
        "order_svc",
        "UPDATE orders SET version = version + 1 WHERE id = $1",
        "UPDATE orders SET version = version - 1 WHERE id = $1",
    ),
    "the page": (
        "A7",
        "mypage_svc",
        f"UPDATE mypages SET order_id = '{MOVED}' WHERE order_id = $1",
        f"UPDATE mypages SET order_id = $1 WHERE order_id = '{MOVED}'",
    ),
    "the desk's booking": (
        "A9",
        "reservation_svc",
        f"UPDATE reservations SET order_id = '{MOVED}' WHERE order_id = $1",
        f"UPDATE reservations SET order_id = $1 WHERE order_id = '{MOVED}'",
    ),
    "an event's effect": (
        "A11",
        "reservation_svc",
        "DELETE FROM inbox WHERE event_id = (SELECT max(event_id::text)::uuid FROM inbox "
        "WHERE $1::text IS NOT NULL) RETURNING event_id::text",
        None,
    ),
}


def violated(
    hotel: Hotel,
    *,
    patience_seconds: float = 0,
    window: audit.Window = audit.Window(),  # noqa: B008 - immutable
) -> dict[str, list[str]]:
    """The violations that the audit reports, by invariant."""
    found = audit.check(hotel.stack, patience_seconds=patience_seconds, window=window)
    return {number: violations for number, violations in found.items() if violations}


@dataclass(frozen=True, slots=True)
class Damaged:
    """Orders whose data these tests damage and repair."""

    paid: str
    canceled: str


@pytest.fixture(scope="module")
def orders(hotel: Hotel) -> Damaged:
    """A paid order and a canceled one."""
    guest = hotel.caller()
    canceled, paid = (hotel.order(guest)["id"] for _ in range(2))
    guest.request("DELETE", f"/orders/{canceled}").raise_for_status()
    hotel.page_with(canceled, status="CANCELED", reservationStatus="CANCELED")
    hotel.page_with(paid, status="PAID", reservationStatus="RECEIVED")
    return Damaged(paid, canceled)


@pytest.mark.parametrize("number", BROKEN)
def test_a_broken_invariant_is_reported(hotel: Hotel, orders: Damaged, number: str) -> None:
    """The audit reports the number of the invariant, until the data is repaired."""
    assert violated(hotel, patience_seconds=30) == {}
    database, damage, mend = BROKEN[number]
    order_id = orders.paid

    moved_to = query(hotel, database, damage, order_id)
    try:
        assert number in violated(hotel)
    finally:
        query(hotel, database, mend, order_id, *([moved_to] if moved_to else []))

    assert violated(hotel, patience_seconds=30) == {}


def test_a_window_s_audit_looks_at_its_orders_alone(
    hotel: Hotel, guest: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those placed from one time on and before another; rooms are counted over all orders in any case."""
    before = datetime.now(UTC)
    order_id = hotel.order(guest)["id"]
    hotel.page_with(order_id, reservationStatus="RECEIVED")
    after = datetime.now(UTC)
    assert violated(hotel, patience_seconds=30) == {}

    query(hotel, "pay_svc", BROKEN["A2"][1], order_id)
    try:
        seen = violated(hotel, window=audit.Window(before, after))
        assert order_id in str(seen["A2"])
        assert violated(hotel, window=audit.Window(after)) == {}
        assert violated(hotel, window=audit.Window(None, before)) == {}
        with monkeypatch.context() as at_once:
            at_once.setattr(audit, "PATIENCE_SECONDS", 0)
            told = gotohotel(hotel.stack, "audit", "--since", before.isoformat(), "--until", after.isoformat())
        assert told.returncode == 1
        assert order_id in told.stdout
        assert gotohotel(hotel.stack, "audit", "--since", after.isoformat()).returncode == 0
        assert gotohotel(hotel.stack, "audit", "--until", before.isoformat()).returncode == 0
        turned = gotohotel(hotel.stack, "audit", "--since", after.isoformat(), "--until", before.isoformat())
        assert turned.returncode == 1
        assert "The window is empty" in turned.stderr
    finally:
        query(hotel, "pay_svc", BROKEN["A2"][2], order_id)

    assert violated(hotel, patience_seconds=30) == {}


@pytest.mark.parametrize("what", MISSING)
def test_what_is_missing_is_reported(hotel: Hotel, orders: Damaged, what: str) -> None:
    """The audit reports the invariant that requires the row, until the row is restored."""
    assert violated(hotel, patience_seconds=30) == {}
    number, database, damage, mend = MISSING[what]
    order_id = orders.paid
    old = "UPDATE payments SET approved_at = approved_at + $2::interval WHERE order_id = $1"
    if number == "A9":  # the booking has five minutes to reach the desk
        query(hotel, "pay_svc", old, order_id, timedelta(minutes=-6))
    if what == "the payment of a terminal event":
        order_id = orders.canceled
        damage = MISSING["the payment"][2]
        mend = MISSING["the payment"][3]

    gone = query(hotel, database, damage, order_id)
    try:
        assert number in violated(hotel)
    finally:
        if what == "an event's effect":
            query(hotel, database, "INSERT INTO inbox (event_id) VALUES ($1)", gone)
        else:
            query(hotel, database, str(mend), order_id)
        if number == "A9":
            query(hotel, "pay_svc", old, order_id, timedelta(minutes=6))

    assert violated(hotel, patience_seconds=30) == {}


def test_an_expiry_beside_an_approval_is_reported(hotel: Hotel, guest: Client) -> None:
    """An expired order whose payment was approved violates A3: a paid booking must not be lost."""
    order = hotel.order(guest)["id"]
    hotel.page_with(order, reservationStatus="RECEIVED")
    assert violated(hotel, patience_seconds=30) == {}  # order_svc, too, has handled the events
    query(hotel, "order_svc", "UPDATE orders SET expired_at = now() WHERE id = $1", order)
    try:
        found = violated(hotel)["A3"]
    finally:
        query(hotel, "order_svc", "UPDATE orders SET expired_at = NULL WHERE id = $1", order)

    assert found == [f"order {order} expired although its payment was approved"]


def test_a_confirmed_booking_without_a_live_order_is_reported(hotel: Hotel, guest: Client) -> None:
    """A confirmed reservation whose order is EXPIRED violates A2: the guest has a number for a booking that is gone."""
    order = hotel.order(guest)["id"]
    hotel.reservation_with(order, status="RECEIVED")
    hotel.desk.post(f"/reservations/{order}:confirm")
    hotel.page_with(order, status="CONFIRMED")
    assert violated(hotel, patience_seconds=30) == {}  # order_svc, too, has handled the events
    query(hotel, "order_svc", "UPDATE orders SET status = 'EXPIRED' WHERE id = $1", order)
    try:
        found = violated(hotel)["A2"]
    finally:
        query(hotel, "order_svc", "UPDATE orders SET status = 'CONFIRMED' WHERE id = $1", order)

    assert found == [f"reservation {order} is CONFIRMED, but its order is EXPIRED"]


def test_a_second_refund_is_counted(hotel: Hotel, guest: Client) -> None:
    """Each refund is an entry in the processor's ledger, so a second one violates A3."""
    order = hotel.order(guest)["id"]
    guest.request("DELETE", f"/orders/{order}").raise_for_status()
    hotel.page_with(order, status="CANCELED", paymentStatus="CANCELED")
    assert violated(hotel, patience_seconds=30) == {}
    refund_again = (
        "INSERT INTO entries (key, kind, order_id, reason, currency, amount, approval_no) "
        "SELECT key, kind, order_id, reason, currency, amount, 'again' FROM entries WHERE "
        "order_id = $1 AND kind = 'REFUND'"
    )
    query(hotel, "sandbox", "DROP INDEX entries_one_refund")
    try:
        query(hotel, "sandbox", refund_again, order)
        found = violated(hotel)["A3"]
    finally:
        query(hotel, "sandbox", "DELETE FROM entries WHERE approval_no = 'again'")
        query(hotel, "sandbox", "CREATE UNIQUE INDEX entries_one_refund ON entries (key) WHERE kind = 'REFUND'")

    assert f"order {order} was refunded 2 times" in found


def test_the_effect_of_a_dead_letter_that_was_dropped_is_missed(hotel: Hotel, guest: Client) -> None:
    """After the drop, only the audit shows that the desk never received a paid booking."""
    rule = "ALTER TABLE reservations ADD CONSTRAINT poison CHECK (booking ->> 'name' <> 'Dropped') NOT VALID"
    query(hotel, "reservation_svc", rule)
    try:
        order = hotel.order(guest, name="Dropped")["id"]
        wait_for(lambda: bool(letters(hotel).get(order)))
    finally:
        query(hotel, "reservation_svc", "ALTER TABLE reservations DROP CONSTRAINT poison")
    (number,) = letters(hotel)[order]
    shown = gotohotel(hotel.stack, "dead-letters", "show", str(number)).stdout
    event = re.search(r"^ce-id: (\S+)", shown, re.MULTILINE)
    assert event is not None
    assert gotohotel(hotel.stack, "dead-letters", "drop", str(number)).returncode == 0

    found = violated(hotel)

    assert found["A11"] == [f"PaymentApproved of {order} was never handled by reservation_svc"]
    in_jetstream(hotel, lambda js: _publish_again(js, event[1]))  # an operator can still publish it again
    hotel.page_with(order, reservationStatus="RECEIVED")
    assert violated(hotel, patience_seconds=30) == {}


async def _publish_again(js: Any, event_id: str) -> None:
    for number in range(1, (await js.stream_info("EVENTS")).state.last_seq + 1):
        with suppress(nats.js.errors.NotFoundError):
            message = await js.get_msg("EVENTS", number)
            if (message.headers or {}).get("ce-id") == event_id:
                headers = {**message.headers, "Nats-Msg-Id": f"again/{event_id}"}
                await js.publish(message.subject, message.data, headers=headers)
                return


def test_letters_between_digits_are_no_card_number(hotel: Hotel, guest: Client) -> None:
    """Neither a name with digits nor a long numeric subject causes a false alarm."""
    hotel.order(guest, name="4a2b" * 8)
    hotel.order(hotel.caller(subject="110424242424242424200"))

    assert violated(hotel, patience_seconds=30) == {}


def test_a_card_number_is_reported_whoever_has_it_for_a_subject(hotel: Hotel, guest: Client) -> None:
    """The exception for long numeric subjects does not hide a card number."""
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
    """The headers of a message are stored as long as the message itself."""

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


def test_a_dead_letter_is_reported_and_ends_the_command_with_a_failure(
    hotel: Hotel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`gotohotel audit` reports the dead letter as a violation of A11 and exits with status 1."""
    monkeypatch.setattr(audit, "PATIENCE_SECONDS", 0)

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
        done = gotohotel(hotel.stack, "audit")
    finally:
        asyncio.run(bury(purge=True))

    assert done.returncode == 1
    assert "A11  VIOLATED" in done.stdout
    assert "gotohotel.x for nobody: test" in done.stdout
