"""Checks the result: does everything come to rest, do the databases agree, was every answer true?"""

import asyncio
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from chaos.load import OK, Operation
from chaos.nemesis import query
from gotohotel.bus.streams import EVENTS
from gotohotel.database import TRANSIENT
from ops import audit
from ops.errors import StackError
from ops.stack import Stack
from ops.stream import jetstream

REST_SECONDS = 60  # outcomes that are unknown have to be known by then

# What is still in progress, according to the database that knows it.
UNDER_WAY = (
    ("order_svc", "orders being canceled", "SELECT count(*) FROM orders WHERE status = 'CANCELING'"),
    (
        "pay_svc",
        "unsettled payments",
        "SELECT count(*) FROM payments WHERE attempt_open_since IS NOT NULL "
        "OR (cancel_asked_at IS NOT NULL AND canceled_at IS NULL)",
    ),
    (
        "reservation_svc",
        "unfinished endings",
        "SELECT count(*) FROM reservations WHERE ending_status IS NOT NULL AND ended_at IS NULL",
    ),
    *(
        (service, f"unpublished events of {service}", "SELECT count(*) FROM outbox WHERE published_at IS NULL")
        for service in ("order_svc", "pay_svc", "reservation_svc")
    ),
)
CONSUMERS = ("order_svc", "reservation_svc", "mypage_svc")


@dataclass(kw_only=True)
class Verdict:
    """The violations; it passes if there are none."""

    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    stuck: dict[str, int] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)
    rest_seconds: float = 0.0

    @property
    def passes(self) -> bool:
        """Whether there are no violations."""
        return not (self.lost or self.doubled or self.stuck or self.violations)

    def sentences(self) -> Iterator[str]:
        """The violations as sentences."""
        yield from (f"lost: {what}" for what in self.lost)
        yield from (f"doubled: {what}" for what in self.doubled)
        yield from (f"stuck: {count} {what}" for what, count in self.stuck.items())
        yield from self.violations


async def judge(stack: Stack, history: Iterable[Operation]) -> Verdict:
    """Waits until everything is at rest, and compares the databases with one another and with the clients' answers."""
    verdict = Verdict()
    began = time.monotonic()
    quiet = 0
    while quiet < 2:  # an event that was handled between two queries may have caused a new one
        under_way = await _under_way(stack)
        quiet = 0 if under_way else quiet + 1
        if time.monotonic() - began > REST_SECONDS:
            verdict.stuck = under_way
            break
        await asyncio.sleep(0.25)
    verdict.rest_seconds = time.monotonic() - began
    snapshot, found = await asyncio.to_thread(audit.check_snapshot, stack)
    verdict.violations = [f"{number}: {what}" for number, violations in found.items() for what in violations[:5]]
    verdict.violations += _out_of_order(snapshot)[:5]
    compare(history, snapshot, verdict)
    return verdict


def _out_of_order(snapshot: audit.AuditSnapshot) -> list[str]:
    """Events that the relay published before an earlier one of the same aggregate."""
    last: dict[tuple[str, str], int] = {}
    found = []
    for event in (event for event in snapshot.events if event.from_relay):
        if event.version < last.setdefault((event.source, event.aggregate), event.version):
            found.append(f"order: {event.name} of {event.aggregate} came after a later one")
        last[event.source, event.aggregate] = event.version
    return found


async def _under_way(stack: Stack) -> dict[str, int]:
    found: dict[str, int] = {}
    try:
        for database, what, statement in UNDER_WAY:
            found[what] = int(await query(stack, database, statement))
        async with jetstream(stack) as js:
            for name in CONSUMERS:
                consumer = await js.consumer_info(str(EVENTS.name), name)
                found[f"events for {name}"] = (consumer.num_pending or 0) + (consumer.num_ack_pending or 0)
    except (*TRANSIENT, StackError) as error:
        found[f"answers of a part ({error!r})"] = 1
    return {what: count for what, count in found.items() if count}


def compare(history: Iterable[Operation], snapshot: audit.AuditSnapshot, verdict: Verdict) -> None:
    """Adds the answers that the databases contradict."""
    by_label: dict[str, list[Any]] = {}
    for order in snapshot.orders.values():
        by_label.setdefault(order["name"], []).append(order)
    standing = Counter(
        {
            order_id: sum(1 for charge in charges if charge["refunded_at"] is None)
            for order_id, charges in snapshot.charges.items()
        }
    )
    for order_id, charges in snapshot.charges.items():
        if len(charges) > 1:
            verdict.doubled.append(f"order {order_id} was charged {len(charges)} times")
    asked: dict[str, list[Operation]] = {}
    for operation in history:
        answers = [*operation.errors, str(operation.answer.get("message"))]  # a retry that succeeds excuses nothing
        if internal := next((text for text in answers if text.startswith("internal error")), None):
            verdict.violations.append(f"an internal error was answered: {internal}")
        if operation.kind == "book":
            _compare_booking(operation, by_label.get(operation.label, []), verdict)
        elif operation.outcome == OK and operation.order_id:
            _compare_act(operation, snapshot, standing[operation.order_id], verdict)
        order_id = operation.order_id or _only_order(by_label.get(operation.label, []))
        asked.setdefault(order_id, []).append(operation)
    for order_id, operations in asked.items():
        if order_id in snapshot.orders:
            _compare_refusals(operations, snapshot, order_id, verdict)


def _only_order(orders: list[Any]) -> str:
    return str(orders[0]["id"]) if len(orders) == 1 else ""


def _compare_refusals(
    operations: list[Operation], snapshot: audit.AuditSnapshot, order_id: str, verdict: Verdict
) -> None:
    """What was refused by every call that asked for it must not have been done."""
    order, reservation = snapshot.orders[order_id], snapshot.reservations.get(order_id)
    if not any(operation.kind in ("book", "probe") or operation.label for operation in operations):
        return  # placed by another caller, who may have made calls that are not in this history
    done = {
        "pay": order["paid_at"] is not None or order_id in snapshot.charges,
        "cancel": order["cancel_asked_at"] is not None,
        "desk confirm": reservation is not None and reservation["confirmed_at"] is not None,
        "desk reject": order["rejected_at"] is not None,
    }
    for act, was_done in done.items():
        if was_done and not any(_may_have_done(operation, act) for operation in operations):
            verdict.doubled.append(f"{act} of {order_id} was done, though every call that asked for it was refused")


def _may_have_done(operation: Operation, act: str) -> bool:
    if act == "pay":
        if operation.kind not in ("pay", "book", "probe") or operation.is_refused:
            return False
        return operation.outcome != OK or operation.may_be_charged
    return operation.kind == act and not operation.is_refused


def _compare_booking(operation: Operation, orders: list[Any], verdict: Verdict) -> None:
    if len(orders) > 1:
        verdict.doubled.append(f"the request {operation.label!r} made {len(orders)} orders")
    if operation.outcome == OK:
        if operation.order_id not in {str(order["id"]) for order in orders}:
            verdict.lost.append(f"the acknowledged order {operation.order_id}")
        elif operation.is_paid and orders[0]["paid_at"] is None:
            verdict.lost.append(f"the acknowledged payment of {operation.order_id}")
    # A refusal after a first attempt of unknown outcome may be about that attempt's own order.
    elif operation.is_refused and orders:
        verdict.doubled.append(f"the request {operation.label!r} was refused, and yet made an order")


def _compare_act(operation: Operation, snapshot: audit.AuditSnapshot, standing: int, verdict: Verdict) -> None:
    order_id, kind = operation.order_id, operation.kind
    order, reservation = snapshot.orders.get(order_id), snapshot.reservations.get(order_id)
    if order is None:
        verdict.lost.append(f"order {order_id}, of which a {kind} was acknowledged")
    elif operation.is_paid and order["paid_at"] is None:
        verdict.lost.append(f"the acknowledged payment of {order_id}")
    elif kind in ("cancel", "desk cancel", "desk reject") and standing:
        verdict.lost.append(f"the refund of {order_id}, of which a {kind} was acknowledged")
    elif kind == "cancel" and order["status"] != "CANCELED":
        verdict.lost.append(f"the acknowledged cancel of {order_id}, which is {order['status']}")
    elif kind == "desk confirm" and (reservation is None or reservation["confirmed_at"] is None):
        verdict.lost.append(f"the acknowledged confirmation of {order_id}")
    elif kind in ("desk cancel", "desk reject") and order["status"] not in ("CANCELED", "REJECTED"):
        verdict.lost.append(f"the acknowledged {kind} of {order_id}, which is {order['status']}")
