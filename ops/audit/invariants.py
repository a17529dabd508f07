"""The invariants, each a function that yields a sentence for each violation.

Long because all of them are in one list, in the order of their numbers.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, date, datetime, timedelta
from importlib import import_module
from typing import Any

from gotohotel import inbox
from gotohotel.policies import Policies
from mypage_svc.kakao import message_key
from ops.audit.snapshot import AuditSnapshot, StreamEvent
from ops.services import LISTENERS, MYPAGE

OLDEST_MESSAGE = timedelta(hours=49)  # after two days nothing is asked any more
OLDEST_SAGA = timedelta(minutes=5)
INBOX_REACHES_BACK = inbox.KEEP - timedelta(days=1)
POLICIES: dict[str, Policies[Any]] = {name: import_module(f"{name}.policies").policies for name in LISTENERS}
LIVE = ("PAYMENT_PENDING", "PAID", "CONFIRMED")
PAID = ("PAID", "CONFIRMED")

INVARIANTS: dict[str, tuple[str, Callable[[AuditSnapshot], Iterable[str]]]] = {}


def invariant(number: str, sentence: str) -> Callable[[Callable[[AuditSnapshot], Iterable[str]]], Any]:
    """Registers a check, which yields a sentence for each violation."""

    def register(check: Callable[[AuditSnapshot], Iterable[str]]) -> Callable[[AuditSnapshot], Iterable[str]]:
        if number in INVARIANTS:
            raise ValueError(f"two invariants have the number {number}")
        INVARIANTS[number] = (sentence, check)
        return check

    return register


@invariant("A1", "every acknowledged order exists")
def _orders_exist(snapshot: AuditSnapshot) -> Iterator[str]:
    acknowledged = {
        "an answer": set(snapshot.answered_orders),
        "the stream": {event.message.order_id for event in snapshot.said("Ordered")},
        "a payment": set(snapshot.payments),
        "a reservation": set(snapshot.reservations),
        "the ledger": set(snapshot.charges) - {""},
        "My page": set(snapshot.pages),
    }
    for witness, order_ids in acknowledged.items():
        for order_id in order_ids - set(snapshot.orders):
            yield f"order {order_id} is known to {witness}, but not to order_svc"


@invariant("A2", "no reservation without a payment that was approved, no confirmed one without a live order")
def _reservations_are_paid(snapshot: AuditSnapshot) -> Iterator[str]:
    for order_id, reservation in snapshot.reservations.items():
        payment, order = snapshot.payments.get(order_id), snapshot.orders.get(order_id)
        if reservation["booking"] is not None and (payment is None or payment["approved_at"] is None):
            yield f"reservation {order_id} has no approved payment"
        if reservation["status"] == "CONFIRMED" and order and order["status"] not in (*PAID, "CANCELING"):
            yield f"reservation {order_id} is CONFIRMED, but its order is {order['status']}"


@invariant("A3", "what is charged matches the order's state, in the processor's own ledger")
def _charges_match_orders(snapshot: AuditSnapshot) -> Iterator[str]:
    for order_id, order in snapshot.orders.items():
        charges = snapshot.charges.get(order_id, [])
        standing = [charge for charge in charges if charge["refunded_at"] is None]
        payment = snapshot.payments.get(order_id)
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
    for order_id, charges in snapshot.charges.items():
        if order_id not in snapshot.payments:
            yield f"order {order_id} is charged, but pay_svc knows of no payment"
        for charge in charges:
            if charge["refunds"] > 1:
                yield f"order {order_id} was refunded {charge['refunds']} times"


@invariant("A4", "for every night, held rooms = rooms of live orders <= capacity")
def _held_nights_add_up(snapshot: AuditSnapshot) -> Iterator[str]:
    live = dict(snapshot.live_nights)
    for row in snapshot.allotment:
        rooms = live.pop((row["room_type"], row["night"]), 0)
        nominal = snapshot.capacities.get(row["room_type"])
        as_it_should = rooms == row["held"] <= row["capacity"] == max(row["held"], row["nominal"])
        if not as_it_should or row["nominal"] != nominal:
            yield (
                f"{row['room_type']} {row['night']}: {row['held']} held, {rooms} in live orders, capacity "
                f"{row['capacity']}, nominal {row['nominal']}, the room type's {nominal}"
            )
    for (room_type, night), rooms in live.items():
        yield f"{room_type} {night}: {rooms} in live orders, but the night is not in the allotment"
    for order_id, order in snapshot.orders.items():
        if order["holds_nights"] != (order["status"] in LIVE):
            yield f"order {order_id} is {order['status']}, but holds_nights is {order['holds_nights']}"
    nights: defaultdict[str, set[date]] = defaultdict(set)
    for row in snapshot.allotment:
        nights[row["room_type"]].add(row["night"])
    for room_type, known in nights.items():
        missing = [night for night in _days(min(known), max(known)) if night not in known]
        if missing:
            yield f"{room_type}: {len(missing)} nights from {missing[0]} on are not in the allotment"
    copied = {row["id"]: row for row in snapshot.copied_catalogue}
    for row in snapshot.catalogue:
        copy = copied.get(row["id"])
        if copy is None or dict(copy) != dict(row):
            yield f"room type {row['id']}: order_svc has {dict(copy) if copy else None}, the desk {dict(row)}"
        elif row["id"] not in nights:
            yield f"room type {row['id']} has no night on sale"


def _days(first: date, last: date) -> list[date]:
    return [first + timedelta(days=day) for day in range((last - first).days + 1)]


@invariant("A5", "terminal states never changed")
def _final_states_stay(snapshot: AuditSnapshot) -> Iterator[str]:
    final = {
        "OrderExpired": (snapshot.orders, "EXPIRED"),
        "PaymentCanceled": (snapshot.payments, "CANCELED"),
        "ReservationCanceled": (snapshot.reservations, "CANCELED"),
        "ReservationRejected": (snapshot.reservations, "REJECTED"),
    }
    ended: dict[tuple[str, str], StreamEvent] = {}
    for event in snapshot.said(*final):
        table, status = final[event.name]
        ended[event.source, event.aggregate] = event
        row = table.get(event.aggregate)
        if row is None or row["status"] != status:
            yield f"{event.name} of {event.aggregate}, but it is {row['status'] if row else 'not there'}"
    for event in snapshot.events:
        last = ended.get((event.source, event.aggregate))
        if last and event.version > last.version:
            yield f"{event.name} of {event.aggregate} after {last.name}"


@invariant("A6", "every outbox row is in the stream; versions per aggregate are 1..n")
def _outbox_is_published(snapshot: AuditSnapshot) -> Iterator[str]:
    in_stream = {event.event_id for event in snapshot.events}
    for row in snapshot.outbox:
        if str(row["event_id"]) not in in_stream:
            yield f"{row['type']} of {row['aggregate_id']} is in the outbox, but not in the stream"
    versions: dict[tuple[str, str], dict[str, int]] = defaultdict(dict)
    for event in snapshot.events:
        versions[event.source, event.aggregate][event.event_id] = event.version
    for (source, aggregate), numbers in versions.items():
        if sorted(numbers.values()) != list(range(1, len(numbers) + 1)):
            yield f"{source} {aggregate} announced the versions {sorted(numbers.values())}"
    tables = {"order": snapshot.orders, "pay": snapshot.payments, "reservation": snapshot.reservations}
    for source, table in tables.items():
        for aggregate, row in table.items():
            announced = len(versions[source, aggregate])
            if announced < row["version"]:  # the last ones: no gap shows that they are missing
                yield f"{source} {aggregate} has announced {row['version']} events, {announced} are in the stream"


@invariant("A7", "My page equals what the three owners say")
def _my_page_agrees(snapshot: AuditSnapshot) -> Iterator[str]:
    for order_id, order in snapshot.orders.items():
        page = snapshot.pages.get(order_id)
        if page is None or not page.booking:
            yield f"order {order_id} has no page"
            continue
        payment, reservation = snapshot.payments.get(order_id), snapshot.reservations.get(order_id)
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
            "owner": snapshot.page_owners.get(order_id),
            "name": page.booking.get("name"),
            "room type": page.booking.get("room_type"),
            "check-in": page.booking.get("check_in"),
            "check-out": page.booking.get("check_out"),
            "confirmation number": page.confirmation_no,
        }
        for what, value in owners.items():
            if shown[what] != value:
                yield f"My page {order_id}: {what} is {shown[what]!r}, its owner says {value!r}"
    for order_id in set(snapshot.pages) - set(snapshot.orders):
        yield f"My page {order_id} has no order"
    for order_id in snapshot.unlisted_pages:
        yield f"My page {order_id} is missing in a list"
    if snapshot.pages_left:
        yield f"{snapshot.pages_left} pages are left in the table, although the pages are in {snapshot.pages_in}"
    facts = {order_id: {fact.key for fact in page.facts} for order_id, page in snapshot.pages.items()}
    for event in snapshot.events:
        if event.type not in POLICIES[MYPAGE].subjects or (MYPAGE, event.event_id) in snapshot.dead_lettered:
            continue
        if event.aggregate in facts and f"{event.source}/{event.version}" not in facts[event.aggregate]:
            yield f"My page {event.aggregate} lacks {event.name}"


@invariant("A8", "one message for each change of state, none twice")
def _changes_are_told(snapshot: AuditSnapshot) -> Iterator[str]:
    if snapshot.messages is None or snapshot.messages_since is None:
        return
    handed_over = snapshot.handed_over
    keys: set[str] = set()
    for order_id, page in snapshot.pages.items():
        wanted = {change.key for change in page.changes if change.time >= snapshot.messages_since and page.booking}
        found = {row["change"]: row for row in snapshot.messages.get(order_id, [])}
        for change in wanted - set(found):
            yield f"order {order_id}: there is no message about {change}"
        for change in set(found) - {each.key for each in page.changes}:
            yield f"order {order_id}: there is a message about {change}, which has not happened"
        for change, row in found.items():
            if row["status"] in ("PENDING", "ACCEPTED") and row["occurred_at"] < snapshot.now - OLDEST_MESSAGE:
                yield f"order {order_id}: the message about {change} is {row['status']} for ever"
            if not _is_plausible(row):
                yield f"order {order_id}: the message about {change} is {row['status']} ({row['code']}) without reason"
            attempts = [message_key(order_id, change, number + 1) for number in range(row["attempt"])]
            keys.update(attempts)
            has_it = row["status"] in ("ACCEPTED", "DELIVERED") and row["provider"] == "nhn"
            if has_it and handed_over is not None and not handed_over[attempts[-1]]:
                yield f"order {order_id}: the message about {change} is {row['status']}, but the provider has none"
    for order_id in set(snapshot.messages) - set(snapshot.pages):
        yield f"order {order_id} has messages, but no page"
    for key, count in (handed_over or {}).items():
        if count > 1:
            yield f"the provider has message {key} {count} times"
        if key not in keys:
            yield f"the provider has message {key}, which no change asks for"


def _is_plausible(row: Any) -> bool:
    """Whether a message that was not sent has a reason."""
    match row["status"], row["code"]:
        case "SKIPPED", code:  # an erased number may have been no mobile one
            return code == "NO_MOBILE_NUMBER" or bool(code in ("NO_PHONE_NUMBER", "ERASED") and row["phone_no"] == "")
        case "FAILED", "TOO_OLD":
            return bool(row["updated_at"] - row["occurred_at"] >= timedelta(hours=24))
        case "FAILED", code:
            return bool(code)
    return True


@invariant("A9", "no saga is older than 5 minutes in a middle state")
def _sagas_end(snapshot: AuditSnapshot) -> Iterator[str]:
    old = snapshot.now - OLDEST_SAGA
    yield from _never_reached_the_desk(snapshot, old)
    for order_id, order in snapshot.orders.items():
        if order["status"] == "CANCELING" and order["cancel_asked_at"] < old:
            yield f"order {order_id} is CANCELING since {order['cancel_asked_at']}"
        if order["status"] == "PAYMENT_PENDING" and order["expires_at"] < old:
            yield f"order {order_id} should have expired at {order['expires_at']}"
    for order_id, payment in snapshot.payments.items():
        since = payment["attempt_open_since"] or (payment["cancel_asked_at"] if not payment["canceled_at"] else None)
        if since and since < old:
            yield f"payment {order_id} is unsettled since {since}"
    for order_id, reservation in snapshot.reservations.items():
        if reservation["ending_status"] and not reservation["ended_at"] and reservation["ending_asked_at"] < old:
            yield f"reservation {order_id} is ending since {reservation['ending_asked_at']}"


def _never_reached_the_desk(snapshot: AuditSnapshot, old: datetime) -> Iterator[str]:
    for order_id, payment in snapshot.payments.items():
        reservation = snapshot.reservations.get(order_id)
        known = reservation is not None and (reservation["booking"] is not None or reservation["ending_status"])
        if payment["approved_at"] and not payment["canceled_at"] and payment["approved_at"] < old and not known:
            yield f"order {order_id} is paid since {payment['approved_at']}, but the desk has no booking"


@invariant("A10", "no card number anywhere: tables, stream, logs")
def _no_card_number(snapshot: AuditSnapshot) -> Iterator[str]:
    yield from snapshot.card_numbers


@invariant("A11", "nothing is dead-lettered, and every event was handled by all who listen to it")
def _events_are_handled(snapshot: AuditSnapshot) -> Iterator[str]:
    yield from snapshot.dead_letters
    for event in snapshot.events:
        forgotten = event.published_at and event.published_at < snapshot.now - INBOX_REACHES_BACK
        if event.message is None or forgotten:
            continue
        for service, policies in POLICIES.items():
            since = snapshot.heard_since.get((service, event.type))
            before = since and event.published_at and event.published_at < since
            if event.type not in policies.subjects or service not in snapshot.inboxes or before:
                continue
            handled = event.event_id in snapshot.inboxes[service]
            if not handled and (service, event.event_id) not in snapshot.dead_lettered:
                yield f"{event.name} of {event.aggregate} was never handled by {service}"


@invariant("A14", "every change of state has an actor, in its event, its row and on My page")
def _changes_have_actors(snapshot: AuditSnapshot) -> Iterator[str]:
    since = defaultdict(lambda: datetime.min.replace(tzinfo=UTC), snapshot.actors_since)
    for event in snapshot.events:
        if event.message is None or event.message.occur_time.ToDatetime(tzinfo=UTC) < since[f"{event.source}_svc"]:
            continue
        if not event.message.actor.role or not event.message.actor.subject:
            yield f"{event.name} of {event.aggregate} has no actor"
    rows = (
        ("order_svc", snapshot.orders, "cancel_asked_at", "canceled_by"),
        ("pay_svc", snapshot.payments, "cancel_asked_at", "canceled_by"),
        ("reservation_svc", snapshot.reservations, "confirmed_at", "confirmed_by"),
        ("reservation_svc", snapshot.reservations, "ending_asked_at", "ending_by"),
    )
    for service, table, when, who in rows:
        for order_id, row in table.items():
            if row[when] and row[when] >= since[service] and not row[who]:
                yield f"{service} {order_id}: {when} is stored without {who}"
    for order_id, page in snapshot.pages.items():
        for fact in page.facts:
            if fact.time >= since[f"{fact.source}_svc"] and not fact.actor_role:
                yield f"My page {order_id}: {fact.event} has no actor"
