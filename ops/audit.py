"""Checks the invariants of the contract against the databases, the processor's ledger and the stream."""

import asyncio
import re
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
from google.protobuf.message import DecodeError, Message
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig

from gotohotel.bus import DEAD_LETTERS, EVENTS
from gotohotel.domain import find_card_numbers, passes_luhn
from gotohotel.order.v1 import events_pb2 as order_events
from gotohotel.order.v1 import order_service_pb2
from gotohotel.pay.v1 import events_pb2 as pay_events
from gotohotel.reservation.v1 import events_pb2 as reservation_events
from mypage_svc.domain import MyPage
from mypage_svc.store import page_of
from ops.stack import SANDBOX, SERVICES, Stack
from ops.stream import jetstream
from pay_svc.processor import ANSWER_IS_LOST, ANSWERS_WITH_AN_ERROR, APPROVED, REFUSED

# What is on its way when the audit begins is not wrong: it looks again for so long before it reports.
PATIENCE_SECONDS = 15
OLDEST_SAGA = timedelta(minutes=5)

SANDBOX_CARDS = (APPROVED, *REFUSED, ANSWERS_WITH_AN_ERROR, ANSWER_IS_LOST)

SUBJECTS = ("owner", "subject")  # columns with ids of the tokens' issuer, who may use long numbers
LIVE = ("PAYMENT_PENDING", "PAID", "CONFIRMED")
PAID = ("PAID", "CONFIRMED")
ENDED = ("CANCELED", "REJECTED", "EXPIRED")

TYPES: dict[str, type[Message]] = {
    message.full_name: getattr(module, message.name)
    for module in (order_events, pay_events, reservation_events)
    for message in module.DESCRIPTOR.message_types_by_name.values()
}


@dataclass(frozen=True, slots=True)
class StreamEvent:
    """One message of the stream."""

    event_id: str
    aggregate: str
    type: str
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
class Books:
    """Everything that the invariants speak of, read at one time."""

    orders: dict[str, Any] = field(default_factory=dict)
    payments: dict[str, Any] = field(default_factory=dict)
    reservations: dict[str, Any] = field(default_factory=dict)
    pages: dict[str, MyPage] = field(default_factory=dict)
    charges: dict[str, list[Any]] = field(default_factory=lambda: defaultdict(list))
    allotment: list[Any] = field(default_factory=list)
    capacities: dict[str, int] = field(default_factory=dict)
    outbox: list[Any] = field(default_factory=list)
    answered_orders: list[str] = field(default_factory=list)
    events: list[StreamEvent] = field(default_factory=list)
    dead_letters: list[str] = field(default_factory=list)
    card_numbers: list[str] = field(default_factory=list)
    # Subjects of tokens that hold a card number's digits and more: ids that an issuer gave, typed by nobody.
    odd_subjects: set[str] = field(default_factory=set)

    def said(self, *names: str) -> Iterator[StreamEvent]:
        """The events of these names."""
        return (event for event in self.events if event.name in names)


INVARIANTS: dict[str, tuple[str, Callable[[Books], Iterable[str]]]] = {}


def invariant(number: str, sentence: str) -> Callable[[Callable[[Books], Iterable[str]]], Any]:
    """Registers a check: it yields a sentence for each violation."""

    def register(check: Callable[[Books], Iterable[str]]) -> Callable[[Books], Iterable[str]]:
        INVARIANTS[number] = (sentence, check)
        return check

    return register


@invariant("A1", "every acknowledged order exists")
def _a1(books: Books) -> Iterator[str]:
    acknowledged = {
        "an answer": set(books.answered_orders),
        "the stream": {event.message.order_id for event in books.said("Ordered")},
        "a payment": set(books.payments),
        "a reservation": set(books.reservations),
        "the ledger": set(books.charges) - {""},
    }
    for witness, order_ids in acknowledged.items():
        for order_id in order_ids - set(books.orders):
            yield f"order {order_id} is known to {witness}, but not to order_svc"


@invariant("A2", "no reservation without a payment that was approved")
def _a2(books: Books) -> Iterator[str]:
    for order_id, reservation in books.reservations.items():
        payment = books.payments.get(order_id)
        if reservation["booking"] is not None and (payment is None or payment["approved_at"] is None):
            yield f"reservation {order_id} has no approved payment"


@invariant("A3", "what is charged matches the order's state, in the processor's own ledger")
def _a3(books: Books) -> Iterator[str]:
    for order_id, order in books.orders.items():
        charges = books.charges.get(order_id, [])
        standing = [charge for charge in charges if charge["refunded_at"] is None]
        if order["status"] in PAID:
            if [charge["amount"] for charge in standing] != [order["amount"]]:
                yield f"order {order_id} is {order['status']} with {len(standing)} standing charges"
        elif order["status"] != "CANCELING" and standing:
            yield f"order {order_id} is {order['status']}, yet {len(standing)} charges stand"
        refunded = sum(charge["amount"] for charge in charges if charge["refunded_at"] is not None)
        if order["status"] in ("CANCELED", "REJECTED") and order["refunded"] != refunded:
            yield f"order {order_id} says {order['refunded']} were refunded, the ledger {refunded}"


@invariant("A4", "for every night, held rooms = rooms of live orders <= capacity")
def _a4(books: Books) -> Iterator[str]:
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


@invariant("A5", "terminal states never changed")
def _a5(books: Books) -> Iterator[str]:
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
        if row is not None and row["status"] != status:
            yield f"{event.name} of {event.aggregate}, but it is {row['status']}"
    for event in books.events:
        last = ended.get((event.source, event.aggregate))
        if last and event.message.version > last.message.version:
            yield f"{event.name} of {event.aggregate} after {last.name}"


@invariant("A6", "every outbox row is in the stream; versions per aggregate are 1..n")
def _a6(books: Books) -> Iterator[str]:
    in_stream = {event.event_id for event in books.events}
    for row in books.outbox:
        if str(row["event_id"]) not in in_stream:
            yield f"{row['type']} of {row['aggregate_id']} is in the outbox, but not in the stream"
    versions: dict[tuple[str, str], dict[str, int]] = defaultdict(dict)
    for event in books.events:
        versions[event.source, event.aggregate][event.event_id] = event.message.version
    for (source, aggregate), numbers in versions.items():
        if sorted(numbers.values()) != list(range(1, len(numbers) + 1)):
            yield f"{source} {aggregate} announced the versions {sorted(numbers.values())}"


@invariant("A7", "My page equals what the three owners say")
def _a7(books: Books) -> Iterator[str]:
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
def _a9(books: Books) -> Iterator[str]:
    old = datetime.now(UTC) - OLDEST_SAGA
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


@invariant("A10", "no card number anywhere: tables, stream, logs")
def _a10(books: Books) -> Iterator[str]:
    yield from books.card_numbers


@invariant("A11", "nothing is dead-lettered")
def _a11(books: Books) -> Iterator[str]:
    yield from books.dead_letters


Found = dict[str, list[str]]


def check(stack: Stack, *, patience_seconds: float = PATIENCE_SECONDS) -> Found:
    """The violations of each invariant, after waiting for what is on its way."""
    return check_books(stack, patience_seconds=patience_seconds)[1]


def check_books(stack: Stack, *, patience_seconds: float = PATIENCE_SECONDS) -> tuple[Books, Found]:
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


def _look(stack: Stack) -> tuple[Books, Found]:
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


async def _read(stack: Stack) -> Books:
    books = Books()
    # The stream last: whatever it knows more than the databases is on its way, and found at the next look.
    for database in (*SERVICES, SANDBOX):
        connection = await asyncpg.connect(stack.database_url(database, "postgres"), timeout=3, command_timeout=60)
        try:
            await _READERS[database](connection, books)
            await _search_tables(connection, database, books)
        finally:
            await connection.close()
    await _read_stream(stack, books)
    _search_logs(stack, books)
    return books


async def _read_orders(connection: Any, books: Books) -> None:
    books.orders = {str(row["id"]): row for row in await connection.fetch("SELECT * FROM orders")}
    owners = {order["owner"] for order in books.orders.values()}
    books.odd_subjects = {owner for owner in owners if _shows_a_card(owner, books) and not _is_a_card(owner)}
    books.allotment = await connection.fetch("SELECT * FROM allotment")
    books.capacities = {row["id"]: row["capacity"] for row in await connection.fetch("SELECT * FROM room_types")}
    books.outbox += await connection.fetch("SELECT event_id, aggregate_id, type FROM outbox")
    answers = await connection.fetch(
        "SELECT response FROM requests WHERE method = 'CreateOrderRequest' AND response IS NOT NULL"
    )
    books.answered_orders = [order_service_pb2.Order.FromString(row["response"]).id for row in answers]


async def _read_payments(connection: Any, books: Books) -> None:
    books.payments = {str(row["order_id"]): row for row in await connection.fetch("SELECT * FROM payments")}
    books.outbox += await connection.fetch("SELECT event_id, aggregate_id, type FROM outbox")


async def _read_reservations(connection: Any, books: Books) -> None:
    books.reservations = {str(row["order_id"]): row for row in await connection.fetch("SELECT * FROM reservations")}
    books.outbox += await connection.fetch("SELECT event_id, aggregate_id, type FROM outbox")


async def _read_pages(connection: Any, books: Books) -> None:
    books.pages = {str(row["order_id"]): page_of(row) for row in await connection.fetch("SELECT * FROM mypages")}


async def _read_ledger(connection: Any, books: Books) -> None:
    for row in await connection.fetch("SELECT * FROM ledger WHERE outcome = 'CHARGED'"):
        books.charges[row["order_id"]].append(row)


_READERS = {
    "order_svc": _read_orders,
    "pay_svc": _read_payments,
    "reservation_svc": _read_reservations,
    "mypage_svc": _read_pages,
    SANDBOX: _read_ledger,
}


async def _search_tables(connection: Any, database: str, books: Books) -> None:
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


async def _read_stream(stack: Stack, books: Books) -> None:
    seen: set[str] = set()
    async with jetstream(stack) as js:
        async for message in _messages(js, str(EVENTS.name)):
            said = (message.data.decode("latin-1"), *(message.headers or {}).values())
            if any(_shows_a_card(text, books) for text in said):
                books.card_numbers.append(f"a card number in the stream, message {message.metadata.sequence.stream}")
            event = _stream_event(message)
            if event is not None and event.event_id not in seen:  # an event that was sent again stands there twice
                seen.add(event.event_id)
                books.events.append(event)
        async for message in _messages(js, str(DEAD_LETTERS.name)):
            headers = message.headers or {}
            subject, reason = headers.get("x-dead-subject"), headers.get("x-dead-reason")
            books.dead_letters.append(f"{subject} for {headers.get('x-dead-consumer')}: {reason}")


def _stream_event(message: Any) -> StreamEvent | None:
    """The event in a message; None if it can't be read: whoever listens to it has made it a dead letter."""
    headers = message.headers or {}
    try:
        event = TYPES[message.subject].FromString(message.data)
        from_relay = headers.get("Nats-Msg-Id") == headers["ce-id"]
        return StreamEvent(headers["ce-id"], headers["ce-subject"], message.subject, event, from_relay)
    except (KeyError, DecodeError):
        return None


async def _messages(js: JetStreamContext, stream: str) -> Any:
    left = (await js.stream_info(stream)).state.messages
    reading = ConsumerConfig(ack_policy=AckPolicy.NONE, inactive_threshold=30)
    subscription = await js.pull_subscribe("", stream=stream, config=reading)
    while left > 0:
        for message in await subscription.fetch(min(left, 500), timeout=5):
            left -= 1
            yield message
    await subscription.unsubscribe()


def _search_logs(stack: Stack, books: Books) -> None:
    for file in sorted((stack.home / "log").iterdir()):
        for number, line in enumerate(file.read_text(errors="replace").splitlines(), start=1):
            if _shows_a_card(line, books):
                books.card_numbers.append(f"a card number in {file.name}, line {number}")


def _is_a_card(text: str) -> bool:
    """Whether a text is a card number and nothing else: no id is passed over that would hide one elsewhere."""
    digits = re.sub(r"[\W_]", "", text)
    return re.fullmatch(r"\d{13,19}", digits) is not None and passes_luhn(digits)


def _shows_a_card(text: str, books: Books) -> bool:
    """The program's own test, and one that does not depend on it: the sandbox's numbers, whatever signs are in them."""
    for subject in books.odd_subjects:
        text = text.replace(subject, " ")
    without_signs = re.sub(r"[\W_]", "", text)
    return bool(find_card_numbers(text)) or any(card in without_signs for card in SANDBOX_CARDS)
