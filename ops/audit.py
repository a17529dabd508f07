"""Checks the invariants of the contract against the databases, the processor's ledger and the stream."""

import asyncio
import re
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from importlib import import_module
from typing import Any

import asyncpg
from google.protobuf.message import DecodeError

from gotohotel import inbox
from gotohotel.bus.streams import DEAD_LETTERS
from gotohotel.cards import find_card_numbers, passes_luhn
from gotohotel.order.v1 import order_service_pb2
from gotohotel.outbox import VERSION_HEADER
from gotohotel.policies import Policies
from mypage_svc.domain import MyPage
from mypage_svc.store import page_of
from ops.events import TYPES
from ops.services import LISTENERS, PUBLISHERS, SANDBOX, SERVICES
from ops.stack import Stack
from ops.stream import StreamMessage, every_event, jetstream, messages_of
from pay_svc.sandbox import ANSWER_IS_LOST, ANSWERS_WITH_AN_ERROR, APPROVED, REFUSED

# What is on its way when the audit begins is not wrong: it looks again for so long before it reports.
PATIENCE_SECONDS = 15
OLDEST_SAGA = timedelta(minutes=5)
INBOX_REACHES_BACK = inbox.KEEP - timedelta(days=1)
POLICIES: dict[str, Policies[Any]] = {name: import_module(f"{name}.policies").policies for name in LISTENERS}

SANDBOX_CARDS = (APPROVED, *REFUSED, ANSWERS_WITH_AN_ERROR, ANSWER_IS_LOST)

SUBJECTS = ("owner", "subject")  # columns with ids of the tokens' issuer, who may use long numbers
LIVE = ("PAYMENT_PENDING", "PAID", "CONFIRMED")
PAID = ("PAID", "CONFIRMED")
ENDED = ("CANCELED", "REJECTED", "EXPIRED")


@dataclass(frozen=True, slots=True)
class StreamEvent:
    """One message of the stream or its archive. Of an event that only a newer release knows, `message` is None."""

    event_id: str
    aggregate: str
    type: str
    version: int
    published_at: datetime | None
    message: Any
    from_relay: bool  # and not sent again by a command

    @property
    def name(self) -> str:
        """The event's name, without its package."""
        return self.type.rsplit(".", 1)[1]

    @property
    def source(self) -> str:
        """The service that announced it."""
        return self.type.split(".")[1]


@dataclass
class AuditSnapshot:
    """Everything that the invariants speak of, read at one time."""

    orders: dict[str, Any] = field(default_factory=dict)
    payments: dict[str, Any] = field(default_factory=dict)
    reservations: dict[str, Any] = field(default_factory=dict)
    pages: dict[str, MyPage] = field(default_factory=dict)
    charges: dict[str, list[Any]] = field(default_factory=lambda: defaultdict(list))
    allotment: list[Any] = field(default_factory=list)
    capacities: dict[str, int] = field(default_factory=dict)
    catalogue: list[Any] = field(default_factory=list)  # the desk's room types
    copied_catalogue: list[Any] = field(default_factory=list)  # those of order_svc
    outbox: list[Any] = field(default_factory=list)
    inboxes: dict[str, set[str]] = field(default_factory=dict)  # service → ids of the events that it has handled
    # (service, subject) → since when it hears of it, if it was added to a subscription later on
    heard_since: dict[tuple[str, str], datetime] = field(default_factory=dict)
    answered_orders: list[str] = field(default_factory=list)
    events: list[StreamEvent] = field(default_factory=list)
    dead_letters: list[str] = field(default_factory=list)
    buried: set[tuple[str, str]] = field(default_factory=set)  # (service, event id) of the dead letters
    card_numbers: list[str] = field(default_factory=list)
    # Subjects of tokens that hold a card number's digits and more: ids that an issuer gave, typed by nobody.
    odd_subjects: set[str] = field(default_factory=set)

    now: datetime = field(default_factory=lambda: datetime.now(UTC))  # PostgreSQL's

    def said(self, *names: str) -> Iterator[StreamEvent]:
        """The events of these names that can be read."""
        return (event for event in self.events if event.name in names and event.message is not None)


INVARIANTS: dict[str, tuple[str, Callable[[AuditSnapshot], Iterable[str]]]] = {}


def invariant(number: str, sentence: str) -> Callable[[Callable[[AuditSnapshot], Iterable[str]]], Any]:
    """Registers a check: it yields a sentence for each violation."""

    def register(check: Callable[[AuditSnapshot], Iterable[str]]) -> Callable[[AuditSnapshot], Iterable[str]]:
        if number in INVARIANTS:
            raise ValueError(f"two invariants have the number {number}")
        INVARIANTS[number] = (sentence, check)
        return check

    return register


@invariant("A1", "every acknowledged order exists")
def _orders_exist(books: AuditSnapshot) -> Iterator[str]:
    acknowledged = {
        "an answer": set(books.answered_orders),
        "the stream": {event.message.order_id for event in books.said("Ordered")},
        "a payment": set(books.payments),
        "a reservation": set(books.reservations),
        "the ledger": set(books.charges) - {""},
        "My page": set(books.pages),
    }
    for witness, order_ids in acknowledged.items():
        for order_id in order_ids - set(books.orders):
            yield f"order {order_id} is known to {witness}, but not to order_svc"


@invariant("A2", "no reservation without a payment that was approved, no confirmed one without a live order")
def _reservations_are_paid(books: AuditSnapshot) -> Iterator[str]:
    for order_id, reservation in books.reservations.items():
        payment, order = books.payments.get(order_id), books.orders.get(order_id)
        if reservation["booking"] is not None and (payment is None or payment["approved_at"] is None):
            yield f"reservation {order_id} has no approved payment"
        if reservation["status"] == "CONFIRMED" and order and order["status"] not in (*PAID, "CANCELING"):
            yield f"reservation {order_id} is CONFIRMED, but its order is {order['status']}"


@invariant("A3", "what is charged matches the order's state, in the processor's own ledger")
def _charges_match_orders(books: AuditSnapshot) -> Iterator[str]:
    for order_id, order in books.orders.items():
        charges = books.charges.get(order_id, [])
        standing = [charge for charge in charges if charge["refunded_at"] is None]
        payment = books.payments.get(order_id)
        approved = payment is not None and payment["approved_at"] is not None
        if order["status"] in PAID:
            if [charge["amount"] for charge in standing] != [order["amount"]]:
                yield f"order {order_id} is {order['status']} with {len(standing)} standing charges"
            if not approved:
                yield f"order {order_id} is {order['status']}, but pay_svc knows of no approval"
        elif order["status"] != "CANCELING" and standing:
            yield f"order {order_id} is {order['status']}, yet {len(standing)} charges stand"
        if order["expired_at"] is not None and approved:
            yield f"order {order_id} expired although its payment was approved"
        refunded = sum(charge["amount"] for charge in charges if charge["refunded_at"] is not None)
        if order["status"] in ("CANCELED", "REJECTED") and order["refunded"] != refunded:
            yield f"order {order_id} says {order['refunded']} were refunded, the ledger {refunded}"
    for order_id, charges in books.charges.items():
        if order_id not in books.payments:
            yield f"order {order_id} is charged, but pay_svc knows of no payment"
        for charge in charges:
            if charge["refunds"] > 1:
                yield f"order {order_id} was refunded {charge['refunds']} times"


@invariant("A4", "for every night, held rooms = rooms of live orders <= capacity")
def _held_nights_add_up(books: AuditSnapshot) -> Iterator[str]:
    live: Counter[tuple[str, Any]] = Counter()
    for order in books.orders.values():
        if order["status"] in LIVE:
            for day in range((order["check_out"] - order["check_in"]).days):
                live[order["room_type"], order["check_in"] + timedelta(days=day)] += 1
    for row in books.allotment:
        rooms = live.pop((row["room_type"], row["night"]), 0)
        nominal = books.capacities.get(row["room_type"])
        as_it_should = rooms == row["held"] <= row["capacity"] == max(row["held"], row["nominal"])
        if not as_it_should or row["nominal"] != nominal:
            yield (
                f"{row['room_type']} {row['night']}: {row['held']} held, {rooms} in live orders, capacity "
                f"{row['capacity']}, nominal {row['nominal']}, the room type's {nominal}"
            )
    for (room_type, night), rooms in live.items():
        yield f"{room_type} {night}: {rooms} in live orders, but the night is not in the allotment"
    for order_id, order in books.orders.items():
        if order["holds_nights"] != (order["status"] in LIVE):
            yield f"order {order_id} is {order['status']}, but holds_nights is {order['holds_nights']}"
    nights: defaultdict[str, set[Any]] = defaultdict(set)
    for row in books.allotment:
        nights[row["room_type"]].add(row["night"])
    for room_type, known in nights.items():
        missing = [night for night in _days(min(known), max(known)) if night not in known]
        if missing:
            yield f"{room_type}: {len(missing)} nights from {missing[0]} on are not in the allotment"
    copied = {row["id"]: row for row in books.copied_catalogue}
    for row in books.catalogue:
        copy = copied.get(row["id"])
        if copy is None or dict(copy) != dict(row):
            yield f"room type {row['id']}: order_svc has {dict(copy) if copy else None}, the desk {dict(row)}"
        elif row["id"] not in nights:
            yield f"room type {row['id']} has no night on sale"


def _days(first: Any, last: Any) -> list[Any]:
    return [first + timedelta(days=day) for day in range((last - first).days + 1)]


@invariant("A5", "terminal states never changed")
def _final_states_stay(books: AuditSnapshot) -> Iterator[str]:
    final = {
        "OrderExpired": (books.orders, "EXPIRED"),
        "PaymentCanceled": (books.payments, "CANCELED"),
        "ReservationCanceled": (books.reservations, "CANCELED"),
        "ReservationRejected": (books.reservations, "REJECTED"),
    }
    ended: dict[tuple[str, str], StreamEvent] = {}
    for event in books.said(*final):
        table, status = final[event.name]
        ended[event.source, event.aggregate] = event
        row = table.get(event.aggregate)
        if row is None or row["status"] != status:
            yield f"{event.name} of {event.aggregate}, but it is {row['status'] if row else 'not there'}"
    for event in books.events:
        last = ended.get((event.source, event.aggregate))
        if last and event.version > last.version:
            yield f"{event.name} of {event.aggregate} after {last.name}"


@invariant("A6", "every outbox row is in the stream; versions per aggregate are 1..n")
def _outbox_is_published(books: AuditSnapshot) -> Iterator[str]:
    in_stream = {event.event_id for event in books.events}
    for row in books.outbox:
        if str(row["event_id"]) not in in_stream:
            yield f"{row['type']} of {row['aggregate_id']} is in the outbox, but not in the stream"
    versions: dict[tuple[str, str], dict[str, int]] = defaultdict(dict)
    for event in books.events:
        versions[event.source, event.aggregate][event.event_id] = event.version
    for (source, aggregate), numbers in versions.items():
        if sorted(numbers.values()) != list(range(1, len(numbers) + 1)):
            yield f"{source} {aggregate} announced the versions {sorted(numbers.values())}"
    tables = {"order": books.orders, "pay": books.payments, "reservation": books.reservations}
    for source, table in tables.items():
        for aggregate, row in table.items():
            announced = len(versions[source, aggregate])
            if announced < row["version"]:  # the last ones: no gap shows it
                yield f"{source} {aggregate} has announced {row['version']} events, {announced} are in the stream"


@invariant("A7", "My page equals what the three owners say")
def _my_page_agrees(books: AuditSnapshot) -> Iterator[str]:
    for order_id, order in books.orders.items():
        page = books.pages.get(order_id)
        if page is None or not page.booking:
            yield f"order {order_id} has no page"
            continue
        payment, reservation = books.payments.get(order_id), books.reservations.get(order_id)
        owners = {
            "status": order["status"],
            "payment status": payment["status"] if payment else "",
            "reservation status": reservation["status"] if reservation else "",
            "amount": order["amount"],
            "refunded amount": order["refunded"],
            "owner": order["owner"],
            "name": order["name"],
            "room type": order["room_type"],
            "check-in": order["check_in"].isoformat(),
            "check-out": order["check_out"].isoformat(),
            "confirmation number": (reservation["confirmation_no"] or "") if reservation else "",
        }
        shown = {
            "status": page.status,
            "payment status": page.payment_status,
            "reservation status": page.reservation_status,
            "amount": page.amount.amount if page.amount else None,
            "refunded amount": page.refunded.amount if page.refunded else 0,
            "owner": page.booking["owner"],
            "name": page.booking["name"],
            "room type": page.booking["room_type"],
            "check-in": page.booking["check_in"],
            "check-out": page.booking["check_out"],
            "confirmation number": page.confirmation_no,
        }
        for what, value in owners.items():
            if shown[what] != value:
                yield f"My page {order_id}: {what} is {shown[what]!r}, its owner says {value!r}"
    for order_id in set(books.pages) - set(books.orders):
        yield f"My page {order_id} has no order"


@invariant("A9", "no saga is older than 5 minutes in a middle state")
def _sagas_end(books: AuditSnapshot) -> Iterator[str]:
    old = books.now - OLDEST_SAGA
    yield from _never_reached_the_desk(books, old)
    for order_id, order in books.orders.items():
        if order["status"] == "CANCELING" and order["cancel_asked_at"] < old:
            yield f"order {order_id} is CANCELING since {order['cancel_asked_at']}"
        if order["status"] == "PAYMENT_PENDING" and order["expires_at"] < old:
            yield f"order {order_id} should have expired at {order['expires_at']}"
    for order_id, payment in books.payments.items():
        since = payment["attempt_open_since"] or (payment["cancel_asked_at"] if not payment["canceled_at"] else None)
        if since and since < old:
            yield f"payment {order_id} is unsettled since {since}"
    for order_id, reservation in books.reservations.items():
        if reservation["ending_status"] and not reservation["ended_at"] and reservation["ending_asked_at"] < old:
            yield f"reservation {order_id} is ending since {reservation['ending_asked_at']}"


def _never_reached_the_desk(books: AuditSnapshot, old: datetime) -> Iterator[str]:
    for order_id, payment in books.payments.items():
        reservation = books.reservations.get(order_id)
        known = reservation is not None and (reservation["booking"] is not None or reservation["ending_status"])
        if payment["approved_at"] and not payment["canceled_at"] and payment["approved_at"] < old and not known:
            yield f"order {order_id} is paid since {payment['approved_at']}, but the desk has no booking"


@invariant("A10", "no card number anywhere: tables, stream, logs")
def _no_card_number(books: AuditSnapshot) -> Iterator[str]:
    yield from books.card_numbers


@invariant("A11", "nothing is dead-lettered, and every event was handled by all who listen to it")
def _events_are_handled(books: AuditSnapshot) -> Iterator[str]:
    yield from books.dead_letters
    for event in books.events:
        forgotten = event.published_at and event.published_at < books.now - INBOX_REACHES_BACK
        if event.message is None or forgotten:
            continue
        for service, policies in POLICIES.items():
            since = books.heard_since.get((service, event.type))
            before = since and event.published_at and event.published_at < since
            if event.type not in policies.subjects or service not in books.inboxes or before:
                continue
            handled = event.event_id in books.inboxes[service]
            if not handled and (service, event.event_id) not in books.buried:
                yield f"{event.name} of {event.aggregate} was never handled by {service}"


Found = dict[str, list[str]]


def check(stack: Stack, *, patience_seconds: float = PATIENCE_SECONDS) -> Found:
    """The violations of each invariant, after waiting for what is on its way."""
    return check_snapshot(stack, patience_seconds=patience_seconds)[1]


def check_snapshot(stack: Stack, *, patience_seconds: float = PATIENCE_SECONDS) -> tuple[AuditSnapshot, Found]:
    """The books too. What is found at one look and no longer at the next was on its way, and is not wrong."""
    books, seen = _look(stack)
    ends = time.monotonic() + patience_seconds  # from here on: a look at large books may take longer than that itself
    found = seen
    while any(found.values()) and time.monotonic() < ends:
        time.sleep(0.5)
        before = seen
        books, seen = _look(stack)
        found = {number: [what for what in seen[number] if what in before[number]] for number in seen}
    return books, found


def _look(stack: Stack) -> tuple[AuditSnapshot, Found]:
    books = asyncio.run(_read(stack))
    return books, {number: sorted(check(books)) for number, (_, check) in INVARIANTS.items()}


def report(stack: Stack) -> bool:
    """Prints a line for each invariant; True if all hold."""
    found = check(stack)
    for number, violations in found.items():
        print(f"{number:<4} {'VIOLATED' if violations else 'holds':<9} {INVARIANTS[number][0]}")
        for violation in violations[:10]:
            print(f"     - {violation}")
        if len(violations) > 10:
            print(f"     - and {len(violations) - 10} more")
    return not any(found.values())


# ---------------------------------------------------------------------------------------------- reading the books


async def _read(stack: Stack) -> AuditSnapshot:
    books = AuditSnapshot()
    # The stream last: whatever it knows more than the databases is on its way, and found at the next look.
    for database in (*SERVICES, SANDBOX):
        connection = await asyncpg.connect(stack.database_url(database, "postgres"), timeout=3, command_timeout=60)
        try:
            if database in _READERS:
                await _READERS[database](connection, books)
            if database in PUBLISHERS:
                books.outbox += await connection.fetch("SELECT event_id, aggregate_id, type FROM outbox")
            if database in LISTENERS:
                rows = await connection.fetch("SELECT event_id FROM inbox")
                books.inboxes[database] = {str(row["event_id"]) for row in rows}
                for row in await connection.fetch("SELECT * FROM subscriptions WHERE heard_since > '-infinity'"):
                    books.heard_since[database, row["subject"]] = row["heard_since"]
            await _search_tables(connection, database, books)
        finally:
            await connection.close()
    await _read_stream(stack, books)
    _search_logs(stack, books)
    return books


CATALOGUE = "SELECT id, version, display_name, capacity, max_guests, currency, nightly_rate FROM room_types"


async def _read_orders(connection: Any, books: AuditSnapshot) -> None:
    books.orders = {str(row["id"]): row for row in await connection.fetch("SELECT * FROM orders")}
    owners = {order["owner"] for order in books.orders.values()}
    books.odd_subjects = {owner for owner in owners if _shows_a_card(owner, books) and not _is_a_card(owner)}
    books.allotment = await connection.fetch("SELECT * FROM allotment")
    books.copied_catalogue = await connection.fetch(CATALOGUE)
    books.capacities = {row["id"]: row["capacity"] for row in books.copied_catalogue}
    books.now = await connection.fetchval("SELECT now()")
    answers = await connection.fetch(
        "SELECT response FROM requests WHERE method = 'CreateOrderRequest' AND response IS NOT NULL"
    )
    books.answered_orders = [order_service_pb2.Order.FromString(row["response"]).id for row in answers]


async def _read_payments(connection: Any, books: AuditSnapshot) -> None:
    books.payments = {str(row["order_id"]): row for row in await connection.fetch("SELECT * FROM payments")}


async def _read_reservations(connection: Any, books: AuditSnapshot) -> None:
    books.catalogue = await connection.fetch(CATALOGUE)
    books.reservations = {str(row["order_id"]): row for row in await connection.fetch("SELECT * FROM reservations")}


async def _read_pages(connection: Any, books: AuditSnapshot) -> None:
    books.pages = {str(row["order_id"]): page_of(row) for row in await connection.fetch("SELECT * FROM mypages")}


async def _read_ledger(connection: Any, books: AuditSnapshot) -> None:
    for row in await connection.fetch("SELECT * FROM ledger WHERE outcome = 'CHARGED'"):
        books.charges[row["order_id"]].append(row)


_READERS = {
    "order_svc": _read_orders,
    "pay_svc": _read_payments,
    "reservation_svc": _read_reservations,
    "mypage_svc": _read_pages,
    SANDBOX: _read_ledger,
}


async def _search_tables(connection: Any, database: str, books: AuditSnapshot) -> None:
    """Every value of every table, bytes included."""
    tables = await connection.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
    for (table,) in tables:
        for row in await connection.fetch(f"SELECT * FROM {table}"):
            for column, value in row.items():
                text = value.decode("latin-1") if isinstance(value, bytes) else value
                if column in SUBJECTS and not _is_a_card(text):
                    continue
                if isinstance(text, str) and _shows_a_card(text, books):
                    books.card_numbers.append(f"a card number in {database}.{table}.{column}")


async def _read_stream(stack: Stack, books: AuditSnapshot) -> None:
    seen: set[str] = set()
    async with jetstream(stack) as js:
        async for message in every_event(stack, js):
            said = (message.data.decode("latin-1"), *message.headers.values())
            if any(_shows_a_card(text, books) for text in said):
                books.card_numbers.append(f"a card number in the stream, message {message.sequence}")
            event = _stream_event(message)
            if event is not None and event.event_id not in seen:  # an event that was sent again stands there twice
                seen.add(event.event_id)
                books.events.append(event)
        async for message in messages_of(js, str(DEAD_LETTERS.name)):
            subject, reason = message.headers.get("x-dead-subject"), message.headers.get("x-dead-reason")
            consumer = message.headers.get("x-dead-consumer", "")
            books.dead_letters.append(f"{subject} for {consumer}: {reason}")
            books.buried.add((consumer, message.headers.get("ce-id", "")))


def _stream_event(message: StreamMessage) -> StreamEvent | None:
    """The event in a message; None if it can't be read: whoever listens to it has made it a dead letter."""
    headers = message.headers
    try:
        event: Any = TYPES[message.subject].FromString(message.data) if message.subject in TYPES else None
        version = event.version if event is not None else int(headers[VERSION_HEADER])
        from_relay = headers.get("Nats-Msg-Id") == headers["ce-id"]
        return StreamEvent(
            headers["ce-id"], headers["ce-subject"], message.subject, version, message.time, event, from_relay
        )
    except (KeyError, ValueError, DecodeError):
        return None


def _search_logs(stack: Stack, books: AuditSnapshot) -> None:
    for file in sorted((stack.home / "log").iterdir()):
        for number, line in enumerate(file.read_text(errors="replace").splitlines(), start=1):
            if _shows_a_card(line, books):
                books.card_numbers.append(f"a card number in {file.name}, line {number}")


def _is_a_card(text: str) -> bool:
    """Whether a text is a card number and nothing else: no id is passed over that would hide one elsewhere."""
    digits = re.sub(r"[\W_]", "", text)
    return re.fullmatch(r"\d{13,19}", digits) is not None and passes_luhn(digits)


def _shows_a_card(text: str, books: AuditSnapshot) -> bool:
    """The program's own test, and one that does not depend on it: the sandbox's numbers, whatever signs are in them."""
    for subject in books.odd_subjects:
        text = text.replace(subject, " ")
    without_signs = re.sub(r"[\W_]", "", text)
    return bool(find_card_numbers(text)) or any(card in without_signs for card in SANDBOX_CARDS)
