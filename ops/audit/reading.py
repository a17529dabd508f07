"""Reads the snapshot from databases, ledger, stream and logs."""

import json
import re
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import datetime
from typing import Any

import asyncpg
from google.protobuf.message import DecodeError
from nats.js import JetStreamContext

from gotohotel.bus.streams import DEAD_LETTERS
from gotohotel.cards import find_card_numbers, passes_luhn
from gotohotel.order.v1 import order_service_pb2
from gotohotel.outbox import VERSION_HEADER
from mypage_svc.domain import MyPage
from mypage_svc.store import from_json, list_keys, page_of
from ops import kakao
from ops.addresses import Addresses
from ops.audit.snapshot import AuditSnapshot, StreamEvent
from ops.audit.window import EVERYTHING, Window
from ops.events import TYPES
from ops.page_store import POSTGRES
from ops.services import LISTENERS, PUBLISHERS, SANDBOX, SERVICES, owner
from ops.stream import PUBLISHED_AT, StreamMessage, every_event, jetstream, messages_of
from pay_svc.sandbox import ANSWER_IS_LOST, ANSWERS_WITH_AN_ERROR, APPROVED, REFUSED

SANDBOX_CARDS = (APPROVED, *REFUSED, ANSWERS_WITH_AN_ERROR, ANSWER_IS_LOST)

# A page that can't be read is missed by the audit.
DAMAGED = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError)

SUBJECTS = ("owner", "subject")  # columns with ids of the token issuer, which may contain long numbers


async def read_snapshot(stack: Addresses, window: Window = EVERYTHING) -> AuditSnapshot:
    """Reads what the invariants are checked on: of the window's orders, and what belongs to no order.

    In a window, what the provider of messages has is not compared, and events about room types are not read.
    """
    snapshot = AuditSnapshot(window=window)
    # The stream last: what it knows and the databases do not is in progress, and is there at the next look.
    for database in (*SERVICES, SANDBOX):
        role = owner(database) if database in SERVICES else database
        connection = await asyncpg.connect(stack.database_url(database, role), timeout=3, command_timeout=60)
        try:
            if database in _READERS:
                await _READERS[database](connection, snapshot)
            if since := await connection.fetchval(ACTORS_SINCE, database):
                snapshot.actors_since[database] = since
            if database in PUBLISHERS:
                snapshot.outbox += await connection.fetch(
                    f"SELECT event_id, aggregate_id, type FROM outbox WHERE {window.where('aggregate_id')}"
                )
            if database in LISTENERS:
                rows = await connection.fetch(f"SELECT event_id FROM inbox WHERE {window.since('event_id')}")
                snapshot.inboxes[database] = {str(row["event_id"]) for row in rows}
                for row in await connection.fetch("SELECT * FROM subscriptions WHERE heard_since > '-infinity'"):
                    snapshot.heard_since[database, row["subject"]] = row["heard_since"]
            await _search_tables(connection, database, snapshot)
        finally:
            await connection.close()
    await _read_stream(stack, snapshot)
    _search_logs(stack, snapshot)
    if window.is_everything and (log := stack.home / kakao.LOG).exists():
        taken = [json.loads(line) for line in log.read_text().splitlines()]
        snapshot.handed_over = Counter(each["recipientGroupingKey"] for each in taken)
    return snapshot


ACTORS_SINCE = "SELECT applied_at FROM schema_migrations WHERE component = $1 AND name LIKE '%_actors.sql'"
MESSAGES_SINCE = "SELECT applied_at FROM schema_migrations WHERE component = 'mypage_svc' AND number = 2"
# For every night: in how many rooms of live orders somebody sleeps.
LIVE = """
SELECT room_type, night::date AS night, count(*) AS rooms
FROM orders
CROSS JOIN LATERAL generate_series(check_in, check_out - 1, interval '1 day') AS nights(night)
WHERE status IN ('PAYMENT_PENDING', 'PAID', 'CONFIRMED')
GROUP BY room_type, night
"""
ANSWERS = "SELECT response FROM requests WHERE method = 'CreateOrderRequest' AND response IS NOT NULL"
CATALOGUE = "SELECT id, version, display_name, capacity, max_guests, currency, nightly_rate FROM room_types"


async def _read_orders(connection: "asyncpg.Connection[asyncpg.Record]", snapshot: AuditSnapshot) -> None:
    window = snapshot.window
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        rows = await connection.fetch(f"SELECT * FROM orders WHERE {window.where('id')}")
        snapshot.allotment = await connection.fetch("SELECT * FROM allotment")
        snapshot.live_nights = {(row["room_type"], row["night"]): row["rooms"] for row in await connection.fetch(LIVE)}
    snapshot.orders = {str(row["id"]): row for row in rows}
    owners = {order["owner"] for order in snapshot.orders.values()}
    snapshot.odd_subjects = {owner for owner in owners if _shows_a_card(owner, snapshot) and not _is_a_card(owner)}
    snapshot.copied_catalogue = await connection.fetch(CATALOGUE)
    snapshot.capacities = {row["id"]: row["capacity"] for row in snapshot.copied_catalogue}
    snapshot.now = await connection.fetchval("SELECT now()")
    async for row in _rows(connection, ANSWERS):
        order_id = order_service_pb2.Order.FromString(row["response"]).id
        if window.has(order_id):
            snapshot.answered_orders.append(order_id)


async def _read_payments(connection: "asyncpg.Connection[asyncpg.Record]", snapshot: AuditSnapshot) -> None:
    rows = await connection.fetch(f"SELECT * FROM payments WHERE {snapshot.window.where('order_id')}")
    snapshot.payments = {str(row["order_id"]): row for row in rows}


async def _read_reservations(connection: "asyncpg.Connection[asyncpg.Record]", snapshot: AuditSnapshot) -> None:
    snapshot.catalogue = await connection.fetch(CATALOGUE)
    rows = await connection.fetch(f"SELECT * FROM reservations WHERE {snapshot.window.where('order_id')}")
    snapshot.reservations = {str(row["order_id"]): row for row in rows}


async def _read_pages(connection: "asyncpg.Connection[asyncpg.Record]", snapshot: AuditSnapshot) -> None:
    here = snapshot.window.where("order_id")
    async with connection.transaction(isolation="repeatable_read"):  # pages and their messages are written together
        if await connection.fetchval("SELECT to_regclass('pages_in')"):
            snapshot.pages_in = await connection.fetchval("SELECT place FROM pages_in")
        if snapshot.pages_in == POSTGRES:
            pages = f"SELECT order_id, owner, facts, NULL AS notifications FROM mypages WHERE {here}"
            for row in await connection.fetch(pages):
                snapshot.page_owners[str(row["order_id"])] = row["owner"]
                with suppress(*DAMAGED):
                    snapshot.pages[str(row["order_id"])] = page_of(row)
        else:
            snapshot.pages_left = await connection.fetchval("SELECT count(*) FROM mypages")
        snapshot.messages_since = await connection.fetchval(MESSAGES_SINCE)
        if snapshot.messages_since is not None:
            snapshot.messages = defaultdict(list)
            for row in await connection.fetch(f"SELECT * FROM messages WHERE {here}"):
                snapshot.messages[str(row["order_id"])].append(row)


async def _read_ledger(connection: "asyncpg.Connection[asyncpg.Record]", snapshot: AuditSnapshot) -> None:
    here = snapshot.window.where("order_id")
    for row in await connection.fetch(f"SELECT * FROM ledger WHERE outcome = 'CHARGED' AND {here}"):
        snapshot.charges[row["order_id"]].append(row)


_READERS = {
    "order_svc": _read_orders,
    "pay_svc": _read_payments,
    "reservation_svc": _read_reservations,
    "mypage_svc": _read_pages,
    SANDBOX: _read_ledger,
}


COLUMNS = "SELECT attname FROM pg_attribute WHERE attrelid = $1::text::regclass AND attnum > 0"


async def _rows(connection: "asyncpg.Connection[asyncpg.Record]", query: str) -> AsyncIterator[asyncpg.Record]:
    """The rows of a query, a thousand in memory at a time."""
    async with connection.transaction(readonly=True):
        async for row in connection.cursor(query, prefetch=1000):
            yield row


async def _search_tables(
    connection: "asyncpg.Connection[asyncpg.Record]", database: str, snapshot: AuditSnapshot
) -> None:
    """Every value of every table, bytes included; of the window's orders alone where a row belongs to an order."""
    tables = await connection.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
    for (table,) in tables:
        columns = {row["attname"] for row in await connection.fetch(COLUMNS, table)}
        key = (
            "id" if table == "orders" else next((name for name in ("order_id", "aggregate_id") if name in columns), "")
        )
        events = snapshot.window.since("event_id") if "event_id" in columns else "true"
        here = snapshot.window.where(key) if key else events
        async for row in _rows(connection, f"SELECT * FROM {table} WHERE {here}"):
            for column, value in row.items():
                text = value.decode("latin-1") if isinstance(value, bytes) else value
                if not isinstance(text, str) or (column in SUBJECTS and not _is_a_card(text)):
                    continue
                if _shows_a_card(text, snapshot):
                    snapshot.card_numbers.append(f"a card number in {database}.{table}.{column}")


async def _read_stream(stack: Addresses, snapshot: AuditSnapshot) -> None:
    seen: set[str] = set()
    async with jetstream(stack) as js:
        if snapshot.pages_in != POSTGRES:
            await _read_bucket(js, snapshot)
        async for message in every_event(stack, js, since=snapshot.window.reads_from):
            if not snapshot.window.has(message.headers.get("ce-subject", "")):
                continue
            said = (message.data.decode("latin-1"), *message.headers.values())
            if any(_shows_a_card(text, snapshot) for text in said):
                snapshot.card_numbers.append(f"a card number in the stream, message {message.sequence}")
            event = _stream_event(message)
            if event is not None and event.event_id not in seen:  # an event that was sent again is there twice
                seen.add(event.event_id)
                snapshot.events.append(event)
        async for message in messages_of(js, str(DEAD_LETTERS.name)):
            subject, reason = message.headers.get("x-dead-subject"), message.headers.get("x-dead-reason")
            consumer = message.headers.get("x-dead-consumer", "")
            snapshot.dead_letters.append(f"{subject} for {consumer}: {reason}")
            snapshot.dead_lettered.add((consumer, message.headers.get("ce-id", "")))


async def _read_bucket(js: JetStreamContext, snapshot: AuditSnapshot) -> None:
    bucket = snapshot.pages_in
    keys: set[str] = set()
    async for message in messages_of(js, f"KV_{bucket}"):
        key = message.subject.removeprefix(f"$KV.{bucket}.")
        order_id = key.rsplit(".", 1)[-1]
        if not snapshot.window.has(order_id):
            continue
        keys.add(key)
        if not key.startswith("page."):
            continue
        with suppress(*DAMAGED):
            stored = json.loads(message.data)
            snapshot.page_owners[order_id] = stored["owner"]
            snapshot.pages[order_id] = MyPage.of(order_id, from_json(stored["facts"]))
        if _shows_a_card(message.data.decode("latin-1"), snapshot):
            snapshot.card_numbers.append(f"a card number in {bucket}")
    for order_id, guest in snapshot.page_owners.items():
        snapshot.unlisted_pages += [order_id for key in list_keys(order_id, guest) if key not in keys]


def _stream_event(message: StreamMessage) -> StreamEvent | None:
    """The event in a message; None if it can't be parsed: then its consumers have moved it to the dead letters."""
    headers = message.headers
    try:
        event: Any = TYPES[message.subject].FromString(message.data) if message.subject in TYPES else None
        version = event.version if event is not None else int(headers[VERSION_HEADER])
        from_relay = headers.get("Nats-Msg-Id") == headers["ce-id"]
        published_at = datetime.fromisoformat(headers[PUBLISHED_AT]) if PUBLISHED_AT in headers else message.time
        return StreamEvent(
            headers["ce-id"], headers["ce-subject"], message.subject, version, published_at, event, from_relay
        )
    except (KeyError, ValueError, DecodeError):
        return None


def _search_logs(stack: Addresses, snapshot: AuditSnapshot) -> None:
    """The logs of a stack on this machine; where the parts run elsewhere, they are somebody else's."""
    for file in sorted((stack.home / "log").glob("*")):
        for number, line in enumerate(file.read_text(errors="replace").splitlines(), start=1):
            if _shows_a_card(line, snapshot):
                snapshot.card_numbers.append(f"a card number in {file.name}, line {number}")


def _is_a_card(text: str) -> bool:
    """Whether a text is a card number and nothing else. Unlike the program's own test it skips no identifiers."""
    digits = re.sub(r"[\W_]", "", text)
    return re.fullmatch(r"\d{13,19}", digits) is not None and passes_luhn(digits)


def _shows_a_card(text: str, snapshot: AuditSnapshot) -> bool:
    """The program's own test, and an independent one: the sandbox's numbers, with any characters between the digits."""
    for subject in snapshot.odd_subjects:
        text = text.replace(subject, " ")
    without_signs = re.sub(r"[\W_]", "", text)
    return bool(find_card_numbers(text)) or any(card in without_signs for card in SANDBOX_CARDS)
