"""The hotel in memory: the services' own use cases and policies, with a pause before each step.

Long because it is the whole system in memory.

At a pause, the step may run, fail, or run and lose its answer; the process may die; another step may run first.
"""

import asyncio
import copy
import random
from collections import defaultdict
from collections.abc import Coroutine
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
from google.protobuf.message import Message
from grpc.aio import AioRpcError, Metadata

from gotohotel.ids import new_id
from gotohotel.outbox import OutboxRow
from gotohotel.pay.v1 import pay_service_pb2 as pay_pb
from gotohotel.policies import Policies, ReceivedEvent
from gotohotel.rpc.client import CallFailed
from gotohotel.signatures import SigningKey
from gotohotel.wire import actor_from_proto, money_from_proto
from mypage_svc import policies as mypage_policies
from mypage_svc import store as mypage_store
from mypage_svc.domain import Fact, MyPage
from ops.audit import INVARIANTS, AuditSnapshot, StreamEvent
from ops.audit.invariants import LIVE
from order_svc import clients as order_clients
from order_svc import domain as orders
from order_svc import policies as order_policies
from order_svc import service as order_service
from order_svc import store as order_store
from pay_svc import domain as pay
from pay_svc import server as pay_server
from pay_svc import service as pay_service
from pay_svc import wire as pay_wire
from reservation_svc import clients as reservation_clients
from reservation_svc import domain as desk
from reservation_svc import policies as reservation_policies
from reservation_svc import service as reservation_service
from reservation_svc import store as reservation_store
from tests.conftest import DAY, DESK, GUEST
from tests.model.fakes import (
    ANSWER_IS_LOST,
    CARD,
    EXPECTED,
    FAILS,
    GOES_ON,
    NIGHTS,
    ROOM,
    FakeOrders,
    FakePayments,
    FakeProcessor,
    FakeReservations,
    FakeRoomTypes,
    Steps,
)

CHECKED = ("A2", "A3", "A4", "A5", "A7", "A14")
ORDER_KEY = SigningKey("the secret of the model's order_svc")
FOREVER = 1e6  # seconds: in memory, a time-out is simulated as one of the fates
TRACE = pay.MaskedCard(brand="VISA", last4="4242", fingerprint=b"")


class FakeChannel:
    """Calls to pay_svc: a call may not arrive, and its answer may be lost."""

    def __init__(self, hotel: "Hotel") -> None:
        self._hotel = hotel

    async def call(self, path: str, request: Any, response_type: Any, *, timeout_seconds: float) -> Message:
        """Like RpcClient.call."""
        assert response_type in (pay_pb.Payment, pay_pb.ClosePaymentResponse, pay_pb.CheckAvailabilityResponse)
        assert timeout_seconds
        fate = await self._hotel.steps.pause()
        if fate == FAILS:
            raise _call_failed(never_sent=True)
        answer: list[pay.Payment] = []
        # pay_svc works in a task of its own: it continues if the caller dies.
        work = self._hotel.begin(self._serve(path, request, answer))
        try:
            await asyncio.shield(work)
        except asyncio.CancelledError:
            if asyncio.current_task().cancelling():  # type: ignore[union-attr]
                raise
            raise _call_failed(never_sent=False) from None
        except EXPECTED:
            raise _call_failed(never_sent=False) from None
        if fate == ANSWER_IS_LOST:
            raise _call_failed(never_sent=False)
        if path == order_clients.CHECK_AVAILABILITY:
            return pay_pb.CheckAvailabilityResponse()
        closes = path == order_clients.CLOSE_PAYMENT
        return pay_server._closure(answer[0]) if closes else pay_server._payment(answer[0])

    async def _serve(self, path: str, request: Any, answer: list[pay.Payment]) -> None:
        payments, processor, clock = self._hotel.payments, self._hotel.processor, self._hotel.clock
        if path == order_clients.CHECK_AVAILABILITY:
            await payments.find("")
            return
        if path == order_clients.CLOSE_PAYMENT:
            answer.append(await pay_service.close_payment(payments, request.order_id, currency="KRW", clock=clock))
            return
        if path == reservation_clients.CANCEL_PAYMENT:
            answer.append(
                await pay_service.cancel_payment(
                    payments,
                    processor,
                    request.order_id,
                    by=actor_from_proto(request.actor) or pay.SERVICE,
                    currency="KRW",
                    timeout_seconds=FOREVER,
                    clock=clock,
                )
            )
            return
        answer.append(
            await pay_service.process_payment(
                payments,
                processor,
                order_id=request.order_id,
                attempt_id=request.attempt_id,
                amount=money_from_proto(request.amount, "amount"),
                booking=pay_wire.booking_from_proto(request.booking),
                card=pay.Card(request.card_no),
                masked_card=TRACE,
                limits=pay.AttemptLimits(declines_of_an_order=1_000_000),
                timeout_seconds=FOREVER,
                clock=clock,
            )
        )


@dataclass
class Consumer:
    """One service's consumer: its inbox, and the events that it has not acknowledged."""

    policies: Policies[Any]
    inbox: set[str] = field(default_factory=set)
    pending: list[int] = field(default_factory=list)  # positions in the stream


class Mood:
    """Random preferences for a walk: some parts are fast, others slow, and the newest work may come first."""

    def __init__(self, chance: random.Random) -> None:
        parts = (
            "go on",
            "publish",
            "deliver order",
            "deliver reservation",
            "deliver mypage",
            "settle",
            "finish ending",
        )
        self.weights = {part: chance.choice([0.02, 1.0, 1.0, 4.0]) for part in parts}
        self.newest_first = chance.random() < 0.3
        self._chance = chance
        self._haste: dict[object, float] = {}
        self.evil = chance.choice([0.0, 0.05, 0.2])  # the share of steps that go wrong

    def choose(self, what: str, choices: list[Any]) -> Any:
        """Chooses one of them; some tasks and some events are chosen very rarely."""
        if self.newest_first:
            return choices[-1]
        if what == "publish":
            return self._chance.choice(choices)
        return self._chance.choices(
            choices, [self._haste.setdefault(task, self._chance.choice([0.02, 1.0])) for task in choices]
        )[0]


class Hotel:
    """The system, and what can happen to it."""

    def __init__(self, *, closes_unseen_keys: bool = True) -> None:
        self.loop = asyncio.new_event_loop()
        self.steps = Steps()
        self.orders = FakeOrders(self.steps)
        self.payments = FakePayments(self.steps)
        self.reservations = FakeReservations(self.steps)
        self.processor = FakeProcessor(self.steps, closes_unseen_keys=closes_unseen_keys)
        self.facts: defaultdict[str, list[Fact]] = defaultdict(list)
        self.stream: list[tuple[str, OutboxRow]] = []
        self.consumers = {
            "order": Consumer(order_policies.policies),
            "reservation": Consumer(reservation_policies.policies),
            "mypage": Consumer(mypage_policies.policies),
        }
        self.tasks: list[asyncio.Task[Any]] = []
        self.requests: defaultdict[str, list[str]] = defaultdict(list)  # request id → orders that it may have placed
        self.sent: set[tuple[str, int]] = set()
        self.final: dict[tuple[str, str], str] = {}
        self.now = datetime.now(UTC)
        self.orders.clock = self.clock
        self._channel: Any = FakeChannel(self)

    # ------------------------------------------------------------------------------------------ calls

    def place(self, nights: slice, request: str | None = None, *, pays: bool) -> asyncio.Task[Any]:
        """A guest places an order, and pays it if `pays`."""
        chosen = NIGHTS[nights]
        booking = orders.Booking(
            owner="guest", name="Guest", phone_no="", room_type=ROOM.id, guest_cnt=1,
            stay=orders.Stay(chosen[0], chosen[-1] + timedelta(days=1)),
        )  # fmt: skip
        order_id = new_id()
        if request:
            self.requests[request].append(order_id)
        return self.begin(
            order_service.place_order(
                self._sales,
                booking,
                CARD.number if pays else None,
                request=Request(request) if request else None,
                order_id=order_id,
                attempt_id=new_id(),
            )
        )

    def pay(self, order_id: str) -> asyncio.Task[Any]:
        """A guest pays an order."""
        return self.begin(
            order_service.pay_order(self._sales, order_id, CARD.number, owner="guest", attempt_id=new_id())
        )

    @property
    def _sales(self) -> order_service.Sales:
        return order_service.Sales(
            orders=self.orders,
            room_types=FakeRoomTypes(),
            payments=self._payments,
            clock=self.clock,
            unpaid_for=timedelta(minutes=15),
            unpaid_limits=orders.UnpaidLimits(),
        )

    @property
    def _payments(self) -> order_clients.GrpcPayments:
        return order_clients.GrpcPayments(self._channel, ORDER_KEY, timeout_seconds=FOREVER)

    def cancel(self, order_id: str) -> asyncio.Task[Any]:
        """A guest cancels."""
        return self.begin(
            order_service.cancel_order(
                self.orders, order_id, owner="guest", reason="", by=GUEST, now=self.now, today=DAY
            )
        )

    def expire(self) -> asyncio.Task[Any]:
        """Runs the expiry job, eight minutes later. Events about recent charges may not have arrived yet."""
        self.now += timedelta(minutes=8)
        payments = self._payments

        async def job() -> None:
            await order_service.watch_expiry(self.orders, payments)
            for order in await self.orders.due(limit=100):
                await order_service.expire_order(self.orders, payments, order, clock=self.clock)

        return self.begin(job())

    def clock(self) -> datetime:
        """The database's time."""
        return self.now

    def confirm(self, order_id: str) -> asyncio.Task[Any]:
        """The desk confirms."""
        return self.begin(
            reservation_service.confirm_reservation(
                self.reservations, order_id, confirmation_no=f"C-{order_id}", by=DESK, now=self.now
            )
        )

    def end(self, order_id: str, status: desk.Status) -> asyncio.Task[Any]:
        """The desk cancels or rejects."""
        return self.begin(
            reservation_service.end_reservation(
                self.reservations, self._desk_payments, order_id, status=status, reason="", by=DESK, clock=self.clock
            ),
            name=f"end {order_id}",
        )

    @property
    def _desk_payments(self) -> reservation_clients.GrpcPayments:
        return reservation_clients.GrpcPayments(self._channel, timeout_seconds=FOREVER)

    # ------------------------------------------------------------------------------------------ jobs and events

    def settle(self, order_id: str) -> asyncio.Task[Any]:
        """Runs pay_svc's job for one payment."""
        return self.begin(
            pay_service.settle_payment(
                self.payments, self.processor, order_id, timeout_seconds=FOREVER, clock=self.clock
            ),
            name=f"settle {order_id}",
        )

    def unsettled(self) -> list[str]:
        """The orders whose payments that job finds."""
        found = self.run(self.payments.unsettled(open_for=timedelta(0), limit=100))
        return [order_id for order_id in found if not self._is_busy(f"settle {order_id}")]

    def finish_ending(self, order_id: str) -> asyncio.Task[Any]:
        """Runs reservation_svc's job for one ending."""
        self.reservations.bind_due(order_id)
        return self.begin(
            reservation_service.finish_ending(self.reservations, self._desk_payments, order_id, clock=self.clock),
            name=f"finish {order_id}",
        )

    def endings(self) -> list[str]:
        """The endings that this job finds. While a call of the desk runs, its ending is found only if it is binding."""
        return [
            key
            for key, row in self.reservations.rows.items()
            if row.ending
            and not row.ended_at
            and (row.ending.binding or not self._is_busy(f"end {key}"))
            and not self._is_busy(f"finish {key}")
        ]

    def _is_busy(self, name: str) -> bool:
        return any(task.get_name() == name for task in self.tasks)

    def publish(self, row: OutboxRow, *, marked: bool) -> None:
        """The relay publishes a row. If it dies before it has marked the row, it publishes the row again."""
        self.stream.append((_event_id(row), row))
        for consumer in self.consumers.values():
            if row.message.DESCRIPTOR.full_name in consumer.policies.subjects:
                consumer.pending.append(len(self.stream) - 1)
        if marked:
            self.sent.add((_source(row) + row.aggregate_id, row.version))

    def unpublished(self) -> list[OutboxRow]:
        """The oldest unpublished row of each aggregate."""
        oldest: dict[str, OutboxRow] = {}
        for table in (self.orders, self.payments, self.reservations):
            for row in table.outbox:
                key = _source(row) + row.aggregate_id
                if (key, row.version) not in self.sent and key not in oldest:
                    oldest[key] = row
        return list(oldest.values())

    def deliver(self, name: str, place: int, *, acknowledged: bool) -> None:
        """A service handles an event in one transaction. An event that is not acknowledged is delivered again."""
        consumer = self.consumers[name]
        event_id, row = self.stream[place]
        if event_id not in consumer.inbox:
            self._handle(name, consumer.policies, row)
            consumer.inbox.add(event_id)
        if acknowledged:
            consumer.pending.remove(place)

    def _handle(self, name: str, policies: Policies[Any], row: OutboxRow) -> None:
        arrival = ReceivedEvent(_event_id(row), row.aggregate_id, "", row.message)
        order_id = row.aggregate_id
        if name == "order":
            order = self.orders.load(order_id)
            before = copy.deepcopy(vars(order))
            policies.run([arrival], order_store.UnitOfWork({order_id: order}))
            if vars(order) != before:
                self._at_once(self.orders.save(order))
        elif name == "reservation":
            work = reservation_store.UnitOfWork({}, self.now)
            if order_id in self.reservations.rows:
                work.reservations[order_id] = self.reservations.load(order_id)
            policies.run([arrival], work)
            self._at_once(self.reservations.save(*work.reservations.values()))
        else:
            policies.run([arrival], mypage_store.UnitOfWork(self.facts))

    # ------------------------------------------------------------------------------------------ time

    def begin(self, work: Coroutine[Any, Any, Any], *, name: str | None = None) -> asyncio.Task[Any]:
        """Starts a task; it stops at its first step."""
        task = self.loop.create_task(work, name=name)
        self.tasks.append(task)
        return task

    def let(self, task: asyncio.Task[Any], fate: str) -> None:
        """Resumes a waiting step with this fate."""
        self.steps.waiting[task].set_result(fate)
        self.turn()

    def finish(self, task: asyncio.Task[Any]) -> None:
        """Runs a task to its end, together with the work that it calls, and nothing else."""
        self.turn()
        others = set(self.steps.waiting) - {task}
        while not task.done():
            self.let(next(work for work in self.steps.waiting if work not in others), GOES_ON)

    def kill(self, task: asyncio.Task[Any]) -> None:
        """Kills the process that runs this task."""
        task.cancel()
        self.turn()

    def turn(self) -> None:
        """Runs all tasks until they wait, and removes those that have ended."""
        self.loop.run_until_complete(_breathe())
        for task in [task for task in self.tasks if task.done()]:
            self.tasks.remove(task)
            error = None if task.cancelled() else task.exception()
            if error is not None and not isinstance(error, EXPECTED):
                raise error

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Runs a coroutine that does not pause."""
        return self.loop.run_until_complete(work)

    def _at_once(self, work: Coroutine[Any, Any, Any]) -> None:
        free, self.steps.free = self.steps.free, True
        try:
            self.run(work)
        finally:
            self.steps.free = free

    def step(self, chance: random.Random, mood: "Mood") -> bool:
        """Performs one step, chosen from all that are possible now. Returns False if there is none."""
        self.turn()
        all_choices: dict[str, list[Any]] = {
            "go on": list(self.steps.waiting),
            "publish": self.unpublished(),
            **{f"deliver {name}": [(name, place) for place in each.pending] for name, each in self.consumers.items()},
            "settle": self.unsettled(),
            "finish ending": self.endings(),
        }
        possible = {what: choices for what, choices in all_choices.items() if choices}
        if not possible:
            return False
        (what,) = chance.choices(list(possible), [mood.weights[what] for what in possible])
        chosen = mood.choose(what, possible[what])
        goes_wrong = chance.random() < mood.evil
        match what:
            case "go on":
                self.let(chosen, chance.choice([FAILS, ANSWER_IS_LOST]) if goes_wrong else GOES_ON)
            case "publish":
                self.publish(chosen, marked=not goes_wrong)
            case "settle":
                self.settle(chosen)
            case "finish ending":
                self.finish_ending(chosen)
            case _:
                self.deliver(*chosen, acknowledged=not goes_wrong)
        return True

    def close(self) -> None:
        """Cancels all tasks and closes the loop."""
        for task in self.tasks:
            task.cancel()
        self.loop.run_until_complete(_breathe())
        self.loop.close()

    # ------------------------------------------------------------------------------------------ audit

    def violations(self) -> list[str]:
        """What the audit would report now, and the violations of the model's own invariants."""
        snapshot = self.books()
        found = [f"{number}: {what}" for number in CHECKED for what in INVARIANTS[number][1](snapshot)]
        for table, rows in (
            ("order", snapshot.orders),
            ("payment", snapshot.payments),
            ("reservation", snapshot.reservations),
        ):
            for key, row in rows.items():
                if self.final.setdefault((table, key), row["status"]) != row["status"]:
                    found.append(f"A5: {table} {key} was {self.final[table, key]} and is {row['status']}")
                if row["status"] not in ("CANCELED", "REJECTED", "EXPIRED"):
                    del self.final[table, key]
        found += [
            f"order {key} is still being canceled"
            for key, row in snapshot.orders.items()
            if row["status"] == "CANCELING"
        ]
        found += [
            f"payment {key} is still unsettled" for key, row in snapshot.payments.items() if row["status"] == "PENDING"
        ]
        for request, made in self.requests.items():
            if sum(order_id in snapshot.orders for order_id in made) > 1:
                found.append(f"the request {request} made several orders")
        return found

    def books(self) -> AuditSnapshot:
        """The state, as the audit reads it from the databases."""
        snapshot = AuditSnapshot()
        for key, order in self.orders.rows.items():
            booking = order.booking
            snapshot.orders[key] = {
                "status": order.status, "amount": order.amount.amount, "refunded": order.refunded.amount,
                "owner": booking.owner, "name": booking.name, "room_type": booking.room_type,
                "check_in": booking.stay.check_in, "check_out": booking.stay.check_out,
                "expired_at": order.facts.expired_at, "holds_nights": key in self.orders.holding,
                "cancel_asked_at": order.facts.cancel_asked_at, "canceled_by": order.canceled_by,
            }  # fmt: skip
        snapshot.payments = {
            key: {
                "status": row.status,
                "approved_at": row.approved_at,
                "cancel_asked_at": row.cancel_asked_at,
                "canceled_by": row.canceled_by,
            }
            for key, row in self.payments.rows.items()
        }
        snapshot.reservations = {
            key: {
                "status": row.status,
                "booking": row.booking,
                "confirmation_no": row.confirmation_no,
                "confirmed_at": row.confirmed_at,
                "confirmed_by": row.confirmed_by,
                "ending_asked_at": row.ending and row.ending.asked_at,
                "ending_by": row.ending and row.ending.asked_by,
            }
            for key, row in self.reservations.rows.items()
        }
        snapshot.pages = {key: MyPage.of(key, facts) for key, facts in self.facts.items()}
        snapshot.page_owners = {key: page.booking.get("owner") for key, page in snapshot.pages.items()}
        for entry in self.processor.ledger.values():
            if entry["charged"]:
                snapshot.charges[entry["order_id"]].append(entry)
        snapshot.allotment = [
            {"room_type": ROOM.id, "night": night, "held": held, "capacity": ROOM.capacity,
             "nominal": ROOM.capacity}
            for night, held in self.orders.held.items()
        ]  # fmt: skip
        snapshot.capacities = {ROOM.id: ROOM.capacity}
        for order in self.orders.rows.values():
            if order.status in LIVE:
                stay = order.booking.stay
                for day in range(stay.nights):
                    night = (order.booking.room_type, stay.check_in + timedelta(days=day))
                    snapshot.live_nights[night] = snapshot.live_nights.get(night, 0) + 1
        seen = dict(self.stream)
        snapshot.events = [
            StreamEvent(
                event_id,
                row.aggregate_id,
                row.message.DESCRIPTOR.full_name,
                row.version,
                None,
                row.message,
                from_relay=True,
            )
            for event_id, row in seen.items()
        ]
        return snapshot


@dataclass(frozen=True)
class Request:
    """An idempotency key, with the properties that the fakes use."""

    request_id: str

    @property
    def key(self) -> tuple[str, str, str]:
        """The primary key."""
        return "guest", "CreateOrderRequest", self.request_id

    @property
    def fingerprint(self) -> bytes:
        """Always the same, because the body never differs here."""
        return b""


async def _breathe() -> None:
    for _ in range(8):  # more turns than the longest chain of task, call and answer needs
        await asyncio.sleep(0)


def _source(row: OutboxRow) -> str:
    return str(row.message.DESCRIPTOR.full_name).split(".")[1]


def _event_id(row: OutboxRow) -> str:
    return f"{_source(row)}/{row.aggregate_id}/{row.version}"


def _call_failed(*, never_sent: bool) -> CallFailed:
    error = AioRpcError(grpc.StatusCode.UNAVAILABLE, Metadata(), Metadata(), details="in memory")
    return CallFailed(error, never_sent=never_sent)
