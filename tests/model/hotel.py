"""A hotel in memory: the services' own use cases and policies, with a pause before each of their steps.

At a pause a step may go on, fail, or be done and its answer lost; the process may die; another may go first.
"""

import asyncio
import copy
import random
from collections import defaultdict
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import grpc
from google.protobuf.message import Message
from grpc.aio import AioRpcError, Metadata

from gotohotel.domain import DomainError, Money, new_id
from gotohotel.outbox import OutboxRow
from gotohotel.pay.v1 import pay_service_pb2 as pay_pb
from gotohotel.policies import Arrival, Policies
from gotohotel.rpc import CallFailed
from gotohotel.wire import money_from_proto
from mypage_svc import policies as mypage_policies
from mypage_svc import store as mypage_store
from mypage_svc.domain import Fact, MyPage
from ops.audit import INVARIANTS, Books, StreamEvent
from order_svc import clients as order_clients
from order_svc import domain as orders
from order_svc import policies as order_policies
from order_svc import service as order_service
from order_svc import store as order_store
from order_svc import wire as order_wire
from pay_svc import domain as pay
from pay_svc import server as pay_server
from pay_svc import service as pay_service
from pay_svc import wire as pay_wire
from reservation_svc import clients as reservation_clients
from reservation_svc import domain as desk
from reservation_svc import policies as reservation_policies
from reservation_svc import service as reservation_service
from reservation_svc import store as reservation_store
from reservation_svc import wire as reservation_wire

GOES_ON, FAILS, ANSWER_IS_LOST = "goes on", "fails", "answer is lost"
FOREVER = 1e6  # seconds: in memory a time-out is one of the fates
CHECKED = ("A2", "A3", "A4", "A5", "A7")
CARD = pay.Card("4242424242424242")
TRACE = pay.CardTrace(brand="VISA", last4="4242", fingerprint=b"")
NIGHTS = [date(2026, 6, 1) + timedelta(days=day) for day in range(3)]
ROOM = orders.RoomType(
    id="Room", version=1, display_name="Room", capacity=2, max_guests=2, nightly_rate=Money("KRW", Decimal(1000))
)


class RequestTaken(Exception):
    """As asyncpg.UniqueViolationError on requests_once."""


# What a caller may be told; anything else is a fault of the program.
EXPECTED = (
    DomainError, ConnectionError, RequestTaken, CallFailed, pay.ProcessorUnavailable, desk.PaymentNotCanceled,
)  # fmt: skip


class Steps:
    """Where every step waits until it is told its fate."""

    def __init__(self) -> None:
        self.waiting: dict[asyncio.Task[Any], asyncio.Future[str]] = {}
        self.free = False  # nothing waits, and all goes well

    async def pause(self) -> str:
        """The fate of the step that comes now."""
        if self.free:
            return GOES_ON
        task = asyncio.current_task()
        assert task is not None
        fate = self.waiting[task] = asyncio.get_running_loop().create_future()
        try:
            return str(await fate)
        finally:
            self.waiting.pop(task, None)


@dataclass
class Table:
    """Rows of one kind of aggregate, their outbox, and the steps that lead to them."""

    steps: Steps
    conflict: type[Exception]
    rows: dict[str, Any] = field(default_factory=dict)
    outbox: list[OutboxRow] = field(default_factory=list)

    async def step(self, act: Any) -> Any:
        """Does it, unless its fate is otherwise; a database that fails looks like ConnectionError."""
        fate = await self.steps.pause()
        if fate == FAILS:
            raise ConnectionError
        result = act()
        if fate == ANSWER_IS_LOST:
            raise ConnectionError
        return result

    def load(self, key: str) -> Any:
        """A copy of a row."""
        return copy.deepcopy(self.rows.get(key))

    def put(self, key: str, aggregate: Any, announced: list[OutboxRow]) -> None:
        """Stores a row and what it announces; the aggregate's revision must be that of the stored row."""
        stored = self.rows.get(key)
        if (stored.revision if stored else 0) != aggregate.revision:
            raise self.conflict
        aggregate.revision += 1
        versions = {(row.aggregate_id, row.version) for row in self.outbox}
        assert not versions & {(row.aggregate_id, row.version) for row in announced}, "a version was announced twice"
        self.outbox += announced
        self.rows[key] = copy.deepcopy(aggregate)


class FakeOrders(Table):
    """The Orders port, with the allotment."""

    def __init__(self, steps: Steps) -> None:
        super().__init__(steps, orders.OrderChanged)
        self.held: dict[date, int] = dict.fromkeys(NIGHTS, 0)
        self.capacity = ROOM.capacity
        self.claims: set[Any] = set()

    async def place(self, order: orders.Order, room_type: orders.RoomType, claim: Any) -> bool:
        """As PostgresOrders.place."""

        def place() -> bool:
            if claim is not None and claim.key in self.claims:
                raise RequestTaken
            nights = _nights(order)
            if any(self.held[night] >= self.capacity for night in nights):
                raise orders.SoldOut
            if room_type.version != ROOM.version:
                return False
            if claim is not None:
                self.claims.add(claim.key)
            for night in nights:
                self.held[night] += 1
            self.put(order.id, order, order_wire.outbox_rows(order))
            order.held_nights_when_loaded = True
            return True

        return bool(await self.step(place))

    async def get(self, order_id: str, *, owner: str | None) -> orders.Order:
        """As PostgresOrders.get."""
        order = await self.step(lambda: self.load(order_id))
        if order is None or (owner is not None and order.booking.owner != owner):
            raise orders.OrderNotFound
        return _loaded(order)

    async def find(self, order_ids: Sequence[str]) -> Mapping[str, orders.Order]:
        """As PostgresOrders.find."""
        return dict(await self.step(lambda: {key: _loaded(self.load(key)) for key in order_ids if key in self.rows}))

    async def due(self, now: datetime, *, at_most: int) -> list[orders.Order]:
        """As PostgresOrders.due."""

        def due() -> list[orders.Order]:
            found = [
                _loaded(copy.deepcopy(order))
                for order in self.rows.values()
                if order.status == orders.Status.PAYMENT_PENDING
                and order.expires_at <= now
                and (order.attempt_until is None or order.attempt_until <= now)
            ]
            return found[:at_most]

        return list(await self.step(due))

    async def save(self, *changed: orders.Order) -> None:
        """As PostgresOrders.save."""

        def save() -> None:
            for order in changed:
                stored = self.rows.get(order.id)
                if stored is None or stored.revision != order.revision:
                    raise orders.OrderChanged
            for order in changed:
                if order.gives_nights_back:
                    for night in _nights(order):
                        self.held[night] -= 1
                self.put(order.id, order, order_wire.outbox_rows(order))
                order.held_nights_when_loaded = order.holds_nights

        await self.step(save)


class FakePayments(Table):
    """The Payments port of pay_svc."""

    def __init__(self, steps: Steps) -> None:
        super().__init__(steps, pay.PaymentChanged)

    async def add(self, payment: pay.Payment) -> bool:
        """As PostgresPayments.add."""

        def add() -> bool:
            if payment.order_id in self.rows:
                payment.collect_events()
                return False
            self.put(payment.order_id, payment, pay_wire.outbox_rows(payment))
            return True

        added = bool(await self.step(add))
        payment.revision = 1
        return added

    async def find(self, order_id: str) -> pay.Payment | None:
        """As PostgresPayments.find."""
        found: pay.Payment | None = await self.step(lambda: self.load(order_id))
        return found

    async def save(self, payment: pay.Payment) -> None:
        """As PostgresPayments.save."""
        await self.step(lambda: self.put(payment.order_id, payment, pay_wire.outbox_rows(payment)))

    async def unsettled(self, *, open_for: timedelta, at_most: int) -> list[str]:
        """As PostgresPayments.unsettled, but as if all of them were old: a live try may be settled under its feet."""
        assert open_for == timedelta(0)
        return [
            key
            for key, payment in self.rows.items()
            if payment.attempt_open_since or (payment.cancel_asked_at and not payment.canceled_at)
        ][:at_most]


class FakeReservations(Table):
    """The Reservations port."""

    def __init__(self, steps: Steps) -> None:
        super().__init__(steps, desk.ReservationChanged)

    async def get(self, order_id: str) -> desk.Reservation:
        """As PostgresReservations.get."""
        reservation: desk.Reservation | None = await self.step(lambda: self.load(order_id))
        if reservation is None or reservation.booking is None:
            raise desk.ReservationNotFound
        return reservation

    async def find(self, order_ids: Sequence[str]) -> Mapping[str, desk.Reservation]:
        """As PostgresReservations.find."""
        return dict(await self.step(lambda: {key: self.load(key) for key in order_ids if key in self.rows}))

    async def save(self, *changed: desk.Reservation) -> None:
        """As PostgresReservations.save."""

        def save() -> None:
            for reservation in changed:
                stored = self.rows.get(reservation.order_id)
                if (stored.revision if stored else 0) != reservation.revision:
                    raise desk.ReservationChanged
            for reservation in changed:
                self.put(reservation.order_id, reservation, reservation_wire.outbox_rows(reservation))

        await self.step(save)

    def bind_due(self, order_id: str) -> None:
        """What PostgresReservations.due_endings does to a row."""
        reservation = self.rows[order_id]
        reservation.bind_ending()
        reservation.revision += 1


class FakeProcessor:
    """The card processor port: what an adapter must promise, and nothing more."""

    def __init__(self, steps: Steps) -> None:
        self._steps = steps
        self.ledger: dict[str, dict[str, Any]] = {}

    async def charge(self, key: str, *, order_id: str, amount: Money, card: pay.Card) -> pay.Charge | pay.Refusal:
        """Charges; which card it is does not matter here: declining is one of the fates of an order."""
        assert card == CARD
        return self._outcome(await self._step(lambda: self._enter(key, order_id, amount, charged=True)), key)

    async def settle(self, key: str) -> pay.Charge | pay.Refusal:
        """Tells the truth and makes it final."""
        return self._outcome(await self._step(lambda: self._enter(key, "", Money.zero("XXX"), charged=False)), key)

    async def refund(self, key: str) -> None:
        """Gives back; a second time changes nothing."""
        await self._step(lambda: self._refund(key))

    def _refund(self, key: str) -> None:
        entry = self.ledger.get(key)
        if entry and entry["charged"]:
            entry["refunded_at"] = entry["refunded_at"] or datetime.now(UTC)

    def _enter(self, key: str, order_id: str, amount: Money, *, charged: bool) -> dict[str, Any]:
        entry = {"order_id": order_id, "amount": amount.amount, "charged": charged, "refunded_at": None}
        return self.ledger.setdefault(key, entry)

    @staticmethod
    def _outcome(entry: Mapping[str, Any], key: str) -> pay.Charge | pay.Refusal:
        return pay.Charge(approval_no=key[-6:]) if entry["charged"] else pay.Refusal(reason="CARD_DECLINED")

    async def _step(self, act: Any) -> Any:
        fate = await self._steps.pause()
        if fate == FAILS:
            raise pay.ProcessorUnavailable("no answer")
        result = act()
        if fate == ANSWER_IS_LOST:
            raise pay.ProcessorUnavailable("the answer is lost")
        return result


class FakeChannel:
    """The call to pay_svc: it may not arrive, and its answer may be lost."""

    def __init__(self, hotel: "Hotel") -> None:
        self._hotel = hotel

    async def call(self, path: str, request: Any, response_type: Any, *, at_most_seconds: float) -> Message:
        """As RpcClient.call."""
        assert (response_type, at_most_seconds) == (pay_pb.Payment, FOREVER)
        fate = await self._hotel.steps.pause()
        if fate == FAILS:
            raise _call_failed(never_sent=True)
        answer: list[pay.Payment] = []
        # pay_svc's work is its own: whoever called it may die meanwhile.
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
        return pay_server._payment(answer[0])

    async def _serve(self, path: str, request: Any, answer: list[pay.Payment]) -> None:
        payments, processor = self._hotel.payments, self._hotel.processor
        if path == reservation_clients.CANCEL_PAYMENT:
            answer.append(
                await pay_service.cancel_payment(
                    payments, processor, request.order_id, currency="KRW", timeout_seconds=FOREVER
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
                card_trace=TRACE,
                timeout_seconds=FOREVER,
            )
        )


@dataclass
class Consumer:
    """One service's ears: its inbox, and what it has not acknowledged."""

    policies: Policies[Any]
    inbox: set[str] = field(default_factory=set)
    pending: list[int] = field(default_factory=list)  # places in the stream


class Mood:
    """For a while some parts are quick and others slow, and the newest may come first."""

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
        self.evil = chance.choice([0.0, 0.05, 0.2])  # the share of what goes wrong

    def choose(self, what: str, choices: list[Any]) -> Any:
        """One of them; some pieces of work, and some events, hardly get on at all."""
        if self.newest_first:
            return choices[-1]
        if what == "publish":
            return self._chance.choice(choices)
        return self._chance.choices(
            choices, [self._haste.setdefault(task, self._chance.choice([0.02, 1.0])) for task in choices]
        )[0]


class Hotel:
    """The system, and what can happen to it."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.steps = Steps()
        self.orders = FakeOrders(self.steps)
        self.payments = FakePayments(self.steps)
        self.reservations = FakeReservations(self.steps)
        self.processor = FakeProcessor(self.steps)
        self.facts: defaultdict[str, list[Fact]] = defaultdict(list)
        self.stream: list[tuple[str, OutboxRow]] = []
        self.consumers = {
            "order": Consumer(order_policies.policies_of(None)),
            "reservation": Consumer(reservation_policies.policies),
            "mypage": Consumer(mypage_policies.policies),
        }
        self.tasks: list[asyncio.Task[Any]] = []
        self.requests: defaultdict[str, list[str]] = defaultdict(list)  # request id → orders that it may have made
        self.sent: set[tuple[str, int]] = set()
        self.final: dict[tuple[str, str], str] = {}
        self.now = datetime.now(UTC)
        self._channel: Any = FakeChannel(self)

    # ------------------------------------------------------------------------------------------ calls

    def place(self, nights: slice, request: str | None = None, *, pays: bool) -> asyncio.Task[Any]:
        """A guest books, and pays if she gave a card."""
        chosen = NIGHTS[nights]
        booking = orders.Booking(
            owner="guest", name="Guest", phone_no="", room_type=ROOM.id, guest_cnt=1,
            stay=orders.Stay(chosen[0], chosen[-1] + timedelta(days=1)),
        )  # fmt: skip
        order = orders.Order.place(
            new_id(), booking, ROOM, placed_at=self.now, expires_at=self.now + timedelta(minutes=15)
        )
        if request:
            self.requests[request].append(order.id)
        if pays:
            order.start_payment(new_id(), started_at=self.now, until=self.now + order_service.ATTEMPT_LIFETIME)

        async def serve() -> None:
            if await self.orders.place(order, ROOM, Request(request) if request else None) and pays:
                await self._charge(order)

        return self.begin(serve())

    def pay(self, order_id: str) -> asyncio.Task[Any]:
        """A guest pays an order."""

        async def serve() -> None:
            order = await order_service.start_payment(
                self.orders, order_id, owner="guest", attempt_id=new_id(), now=self.now
            )
            if order.status == orders.Status.PAYMENT_PENDING:
                await self._charge(order)

        return self.begin(serve())

    async def _charge(self, order: orders.Order) -> None:
        payments = order_clients.GrpcPayments(self._channel, timeout_seconds=FOREVER)
        outcome = await payments.process(order, CARD.number)
        await order_service.settle_payment(self.orders, order, outcome, now=self.now)

    def cancel(self, order_id: str) -> asyncio.Task[Any]:
        """A guest cancels."""
        return self.begin(order_service.cancel_order(self.orders, order_id, owner="guest", reason="", now=self.now))

    def expire(self) -> asyncio.Task[Any]:
        """The expiry job, a good while later."""
        self.now += timedelta(minutes=8)
        return self.begin(order_service.expire_orders(self.orders, now=self.now, at_most=100))

    def confirm(self, order_id: str) -> asyncio.Task[Any]:
        """The desk confirms."""
        return self.begin(
            reservation_service.confirm_reservation(
                self.reservations, order_id, confirmation_no=f"C-{order_id}", now=self.now
            )
        )

    def end(self, order_id: str, status: desk.Status) -> asyncio.Task[Any]:
        """The desk cancels or rejects."""
        return self.begin(
            reservation_service.end_reservation(
                self.reservations, self._desk_payments, order_id, status=status, reason="", now=self.now
            ),
            name=f"end {order_id}",
        )

    @property
    def _desk_payments(self) -> reservation_clients.GrpcPayments:
        return reservation_clients.GrpcPayments(self._channel, timeout_seconds=FOREVER)

    # ------------------------------------------------------------------------------------------ jobs and events

    def settle(self, order_id: str) -> asyncio.Task[Any]:
        """pay_svc's job, for one payment."""
        return self.begin(
            pay_service.settle_payment(self.payments, self.processor, order_id, timeout_seconds=FOREVER),
            name=f"settle {order_id}",
        )

    def unsettled(self) -> list[str]:
        """What that job finds."""
        found = self.run(self.payments.unsettled(open_for=timedelta(0), at_most=100))
        return [order_id for order_id in found if not self._is_busy(f"settle {order_id}")]

    def finish_ending(self, order_id: str) -> asyncio.Task[Any]:
        """reservation_svc's job, for one ending."""
        self.reservations.bind_due(order_id)
        return self.begin(
            reservation_service.finish_ending(self.reservations, self._desk_payments, order_id),
            name=f"finish {order_id}",
        )

    def endings(self) -> list[str]:
        """What that job finds: the desk's own calls have had their time before it looks at theirs."""
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
        """The relay sends a row; if it dies before it has marked it, it will send it again."""
        self.stream.append((_event_id(row), row))
        for consumer in self.consumers.values():
            if row.message.DESCRIPTOR.full_name in consumer.policies.subjects:
                consumer.pending.append(len(self.stream) - 1)
        if marked:
            self.sent.add((_source(row) + row.aggregate_id, row.version))

    def unpublished(self) -> list[OutboxRow]:
        """The oldest unsent row of each aggregate."""
        oldest: dict[str, OutboxRow] = {}
        for table in (self.orders, self.payments, self.reservations):
            for row in table.outbox:
                key = _source(row) + row.aggregate_id
                if (key, row.version) not in self.sent and key not in oldest:
                    oldest[key] = row
        return list(oldest.values())

    def deliver(self, name: str, place: int, *, acknowledged: bool) -> None:
        """An event reaches a service, in one transaction; without the acknowledgement it comes again."""
        consumer = self.consumers[name]
        event_id, row = self.stream[place]
        if event_id not in consumer.inbox:
            self._handle(name, consumer.policies, row)
            consumer.inbox.add(event_id)
        if acknowledged:
            consumer.pending.remove(place)

    def _handle(self, name: str, policies: Policies[Any], row: OutboxRow) -> None:
        arrival = Arrival(_event_id(row), row.aggregate_id, "", row.message)
        order_id = row.aggregate_id
        if name == "order":
            order = _loaded(self.orders.load(order_id))
            before = copy.deepcopy(vars(order))
            policies.run([arrival], order_store.Work({order_id: order}))
            if vars(order) != before:
                self._at_once(self.orders.save(order))
        elif name == "reservation":
            work = reservation_store.Work({})
            if order_id in self.reservations.rows:
                work.reservations[order_id] = self.reservations.load(order_id)
            policies.run([arrival], work)
            self._at_once(self.reservations.save(*work.reservations.values()))
        else:
            policies.run([arrival], mypage_store.Work(self.facts))

    # ------------------------------------------------------------------------------------------ time

    def begin(self, work: Coroutine[Any, Any, Any], *, name: str | None = None) -> asyncio.Task[Any]:
        """Begins a piece of work; it stops at its first step."""
        task = self.loop.create_task(work, name=name)
        self.tasks.append(task)
        return task

    def let(self, task: asyncio.Task[Any], fate: str) -> None:
        """Tells a waiting step its fate."""
        self.steps.waiting[task].set_result(fate)
        self.turn()

    def finish(self, task: asyncio.Task[Any]) -> None:
        """Lets a piece of work go on to its end, and nothing else but what it calls."""
        self.turn()
        others = set(self.steps.waiting) - {task}
        while not task.done():
            self.let(next(work for work in self.steps.waiting if work not in others), GOES_ON)

    def kill(self, task: asyncio.Task[Any]) -> None:
        """The process dies in which this work runs."""
        task.cancel()
        self.turn()

    def turn(self) -> None:
        """Lets everything run until it waits, and forgets what has ended."""
        self.loop.run_until_complete(_breathe())
        for task in [task for task in self.tasks if task.done()]:
            self.tasks.remove(task)
            error = None if task.cancelled() else task.exception()
            if error is not None and not isinstance(error, EXPECTED):
                raise error

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Runs something at once that does not pause."""
        return self.loop.run_until_complete(work)

    def _at_once(self, work: Coroutine[Any, Any, Any]) -> None:
        free, self.steps.free = self.steps.free, True
        try:
            self.run(work)
        finally:
            self.steps.free = free

    def step(self, chance: random.Random, mood: "Mood") -> bool:
        """One of all the things that can go on now; False if nothing can."""
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
        """Ends the loop."""
        for task in self.tasks:
            task.cancel()
        self.loop.run_until_complete(_breathe())
        self.loop.close()

    # ------------------------------------------------------------------------------------------ the books

    def violations(self) -> list[str]:
        """What the audit would report of these books."""
        books = self.books()
        found = [f"{number}: {what}" for number in CHECKED for what in INVARIANTS[number][1](books)]
        for table, rows in (("order", books.orders), ("payment", books.payments), ("reservation", books.reservations)):
            for key, row in rows.items():
                if self.final.setdefault((table, key), row["status"]) != row["status"]:
                    found.append(f"A5: {table} {key} was {self.final[table, key]} and is {row['status']}")
                if row["status"] not in ("CANCELED", "REJECTED", "EXPIRED"):
                    del self.final[table, key]
        found += [
            f"order {key} is still being canceled" for key, row in books.orders.items() if row["status"] == "CANCELING"
        ]
        found += [
            f"payment {key} is still unsettled" for key, row in books.payments.items() if row["status"] == "PENDING"
        ]
        for request, made in self.requests.items():
            if sum(order_id in books.orders for order_id in made) > 1:
                found.append(f"the request {request} made several orders")
        return found

    def books(self) -> Books:
        """As the audit reads them from the databases."""
        books = Books()
        for key, order in self.orders.rows.items():
            booking = order.booking
            books.orders[key] = {
                "status": order.status, "amount": order.amount.amount, "refunded": order.refunded.amount,
                "owner": booking.owner, "name": booking.name, "room_type": booking.room_type,
                "check_in": booking.stay.check_in, "check_out": booking.stay.check_out,
            }  # fmt: skip
        books.payments = {
            key: {"status": row.status, "approved_at": row.approved_at} for key, row in self.payments.rows.items()
        }
        books.reservations = {
            key: {"status": row.status, "booking": row.booking, "confirmation_no": row.confirmation_no}
            for key, row in self.reservations.rows.items()
        }
        books.pages = {key: MyPage.of(key, facts) for key, facts in self.facts.items()}
        for entry in self.processor.ledger.values():
            if entry["charged"]:
                books.charges[entry["order_id"]].append(entry)
        books.allotment = [
            {"room_type": ROOM.id, "night": night, "held": held, "capacity": ROOM.capacity,
             "nominal": ROOM.capacity}
            for night, held in self.orders.held.items()
        ]  # fmt: skip
        books.capacities = {ROOM.id: ROOM.capacity}
        seen = dict(self.stream)
        books.events = [
            StreamEvent(event_id, row.aggregate_id, row.message.DESCRIPTOR.full_name, row.message)
            for event_id, row in seen.items()
        ]
        return books


@dataclass(frozen=True)
class Request:
    """A claim, as far as it is looked at here."""

    request_id: str

    @property
    def key(self) -> str:
        """The primary key."""
        return self.request_id


async def _breathe() -> None:
    for _ in range(8):  # deeper than any chain of work, call and answer
        await asyncio.sleep(0)


def _nights(order: orders.Order) -> list[date]:
    return [order.booking.stay.check_in + timedelta(days=day) for day in range(order.booking.stay.nights)]


def _loaded(order: orders.Order) -> orders.Order:
    order.held_nights_when_loaded = order.holds_nights
    return order


def _source(row: OutboxRow) -> str:
    return str(row.message.DESCRIPTOR.full_name).split(".")[1]


def _event_id(row: OutboxRow) -> str:
    return f"{_source(row)}/{row.aggregate_id}/{row.version}"


def _call_failed(*, never_sent: bool) -> CallFailed:
    error = AioRpcError(grpc.StatusCode.UNAVAILABLE, Metadata(), Metadata(), details="in memory")
    return CallFailed(error, never_sent=never_sent)
