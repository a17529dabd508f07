"""The stores and the card processor in memory: each step waits for its fate. test_fakes compares them with real stores.

Long because it holds every store in memory.
"""

import asyncio
import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

from gotohotel.domain import DomainError, Money
from gotohotel.outbox import OutboxRow
from gotohotel.rpc.client import CallFailed
from order_svc import domain as orders
from order_svc import wire as order_wire
from pay_svc import domain as pay
from pay_svc import wire as pay_wire
from reservation_svc import domain as desk
from reservation_svc import wire as reservation_wire

GOES_ON, FAILS, ANSWER_IS_LOST = "goes on", "fails", "answer is lost"
CARD = pay.Card("4242424242424242")
NIGHTS = [date(2026, 6, 1) + timedelta(days=day) for day in range(3)]
ROOM = orders.RoomType(
    id="Room", version=1, display_name="Room", capacity=2, max_guests=2, nightly_rate=Money("KRW", Decimal(1000))
)


# Errors that a caller may get; any other error is a bug.
EXPECTED = (
    DomainError, ConnectionError, CallFailed, pay.ProcessorUnavailable, desk.PaymentNotCanceled,
    orders.PaymentsUnreachable,
)  # fmt: skip


class Steps:
    """Makes every step wait until its fate is decided."""

    def __init__(self) -> None:
        self.waiting: dict[asyncio.Task[Any], asyncio.Future[str]] = {}
        self.free = False  # if True, no step waits and every step runs

    async def pause(self) -> str:
        """Waits for the fate of the next step and returns it."""
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
    """The rows of one kind of aggregate, their outbox, and the steps that access them."""

    steps: Steps
    conflict: type[Exception]
    rows: dict[str, Any] = field(default_factory=dict)
    outbox: list[OutboxRow] = field(default_factory=list)

    async def step(self, act: Any) -> Any:
        """Runs `act`, unless its fate is to fail. Raises ConnectionError if it fails or its answer is lost."""
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
        """Stores a row and its events. Raises `conflict` if the aggregate's revision is not the stored one."""
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
        self.holding: set[str] = set()  # ids of the orders that hold their nights
        self.outage_began: datetime | None = None
        self.clock: Callable[[], datetime] = lambda: datetime.now(UTC)  # the database's time

    async def place(
        self, order: orders.Order, room_type: orders.RoomType, claim: Any, _: orders.UnpaidLimits | None = None
    ) -> bool:
        """Like PostgresOrders.place, for guests without limits."""

        def place() -> bool:
            if claim is not None and claim.key in self.claims:
                raise orders.RequestTaken
            nights = nights_of(order)
            if any(self.held[night] >= self.capacity for night in nights):
                raise orders.SoldOut
            if room_type.version != ROOM.version:
                return False
            if claim is not None:
                self.claims.add(claim.key)
            for night in nights:
                self.held[night] += 1
            self.put(order.id, order, order_wire.outbox_rows(order))
            self.holding.add(order.id)
            return True

        return bool(await self.step(place))

    async def get(self, order_id: str, *, owner: str | None) -> orders.Order:
        """Like PostgresOrders.get."""
        order = await self.step(lambda: self.load(order_id))
        if order is None or (owner is not None and order.booking.owner != owner):
            raise orders.OrderNotFound
        found: orders.Order = order
        return found

    async def page(self, *, owner: str | None, before: str, size: int) -> list[orders.Order]:
        """Like PostgresOrders.page."""

        def page() -> list[orders.Order]:
            chosen = [
                copy.deepcopy(order)
                for key, order in sorted(self.rows.items(), reverse=True)
                if key < before and owner in (None, order.booking.owner)
            ]
            return chosen[:size]

        return list(await self.step(page))

    async def find(self, order_ids: Sequence[str]) -> Mapping[str, orders.Order]:
        """Like PostgresOrders.find."""
        return dict(await self.step(lambda: {key: self.load(key) for key in order_ids if key in self.rows}))

    async def due(self, *, limit: int) -> list[orders.Order]:
        """Like PostgresOrders.due, but returns an order again at once."""

        def due() -> list[orders.Order]:
            now = self.clock()
            found = [
                copy.deepcopy(order)
                for order in self.rows.values()
                if order.status == orders.Status.PAYMENT_PENDING
                and order.expires_at <= now
                and (order.attempt_until is None or order.attempt_until <= now)
                and self.outage_began is None
            ]
            return found[:limit]

        return list(await self.step(due))

    async def has_unpaid(self) -> bool:
        """Like PostgresOrders.has_unpaid."""
        return bool(
            await self.step(lambda: any(order.status == orders.Status.PAYMENT_PENDING for order in self.rows.values()))
        )

    async def note_contact(self) -> None:
        """Does nothing: unlike in PostgresOrders, a recent contact does not prevent stop_expiry."""

    async def stop_expiry(self) -> None:
        """Like PostgresOrders.stop_expiry."""

        def stop() -> None:
            self.outage_began = self.outage_began or self.clock()

        await self.step(stop)

    async def resume_expiry(self) -> None:
        """Like PostgresOrders.resume_expiry."""

        def resume() -> None:
            began, self.outage_began = self.outage_began, None
            for order in self.rows.values() if began else ():
                if order.status == orders.Status.PAYMENT_PENDING and order.expires_at > began:
                    order.expires_at += self.clock() - max(began, order.created_at)

        await self.step(resume)

    async def save(self, *changed: orders.Order) -> None:
        """Like PostgresOrders.save."""

        def save() -> None:
            for order in changed:
                stored = self.rows.get(order.id)
                if stored is None or stored.revision != order.revision:
                    raise orders.OrderChanged
            for order in changed:
                if order.id in self.holding and not order.holds_nights:
                    self.holding.remove(order.id)
                    for night in nights_of(order):
                        self.held[night] -= 1
                self.put(order.id, order, order_wire.outbox_rows(order))

        await self.step(save)


class FakeRoomTypes:
    """The RoomTypes port, with one room type."""

    async def get(self, room_type: str, *, fresh: bool = False) -> orders.RoomType:
        """Like PostgresRoomTypes.get."""
        assert (room_type, fresh) == (ROOM.id, False)
        return ROOM


class FakePayments(Table):
    """The Payments port of pay_svc."""

    def __init__(self, steps: Steps) -> None:
        super().__init__(steps, pay.PaymentChanged)

    async def add(self, payment: pay.Payment, _: pay.AttemptLimits | None = None) -> bool:
        """Like PostgresPayments.add, for guests without limits."""

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
        """Like PostgresPayments.find."""
        found: pay.Payment | None = await self.step(lambda: self.load(order_id))
        return found

    async def save(self, payment: pay.Payment, _: pay.AttemptLimits | None = None) -> None:
        """Like PostgresPayments.save, for guests without limits."""
        await self.step(lambda: self.put(payment.order_id, payment, pay_wire.outbox_rows(payment)))

    async def unsettled(self, *, open_for: timedelta, limit: int) -> list[str]:
        """Like PostgresPayments.unsettled, but ignores the age of payments: even a running attempt may be settled."""
        assert open_for == timedelta(0)
        return [
            key
            for key, payment in self.rows.items()
            if payment.attempt_open_since or (payment.cancel_asked_at and not payment.canceled_at)
        ][:limit]


class FakeReservations(Table):
    """The Reservations port."""

    def __init__(self, steps: Steps) -> None:
        super().__init__(steps, desk.ReservationChanged)

    async def get(self, order_id: str) -> desk.Reservation:
        """Like PostgresReservations.get."""
        reservation: desk.Reservation | None = await self.step(lambda: self.load(order_id))
        if reservation is None or reservation.booking is None:
            raise desk.ReservationNotFound
        return reservation

    async def find(self, order_ids: Sequence[str]) -> Mapping[str, desk.Reservation]:
        """Like PostgresReservations.find."""
        return dict(await self.step(lambda: {key: self.load(key) for key in order_ids if key in self.rows}))

    async def save(self, *changed: desk.Reservation) -> None:
        """Like PostgresReservations.save."""

        def save() -> None:
            for reservation in changed:
                stored = self.rows.get(reservation.order_id)
                if (stored.revision if stored else 0) != reservation.revision:
                    raise desk.ReservationChanged
            for reservation in changed:
                self.put(reservation.order_id, reservation, reservation_wire.outbox_rows(reservation))

        await self.step(save)

    def bind_due(self, order_id: str) -> None:
        """Changes a row as PostgresReservations.due_endings does."""
        reservation = self.rows[order_id]
        reservation.make_ending_irrevocable()
        reservation.revision += 1


class FakeProcessor:
    """The card processor port, with the guarantees that every adapter must give, and no others."""

    def __init__(self, steps: Steps, *, closes_unseen_keys: bool = True) -> None:
        self._steps = steps
        self.closes_unseen_keys = closes_unseen_keys
        self.created: dict[str, tuple[str, Money]] = {}
        self.ledger: dict[str, dict[str, Any]] = {}

    async def create(self, key: str, *, order_id: str, amount: Money) -> None:
        """Stores the key, so that the processor knows it from now on."""
        await self._step(lambda: self.created.setdefault(key, (order_id, amount)))

    async def confirm(self, key: str, *, order_id: str, amount: Money, card: pay.Card) -> pay.Charge | pay.Refusal:
        """Charges the key, unless it was canceled before. All orders use the same card."""
        assert card == CARD
        assert self.created[key] == (order_id, amount)
        return self._outcome(await self._step(lambda: self._enter(key, order_id, amount, charged=True)), key)

    async def cancel(self, key: str) -> pay.Charge | pay.Refusal:
        """Returns the final outcome; closes an uncharged key. Raises ProcessorUnavailable if it can't close the key."""
        if not self.closes_unseen_keys and key not in self.created:
            raise pay.ProcessorUnavailable("there is no such key")
        return self._outcome(await self._step(lambda: self._enter(key, "", Money.zero("XXX"), charged=False)), key)

    async def refund(self, key: str) -> None:
        """Refunds the charge; a second refund changes nothing."""
        await self._step(lambda: self._refund(key))

    def _refund(self, key: str) -> None:
        entry = self.ledger.get(key)
        if entry and entry["charged"]:
            entry["refunded_at"] = entry["refunded_at"] or datetime.now(UTC)
            entry["refunds"] = 1

    def _enter(self, key: str, order_id: str, amount: Money, *, charged: bool) -> dict[str, Any]:
        entry = {"order_id": order_id, "amount": amount.amount, "charged": charged, "refunded_at": None, "refunds": 0}
        return self.ledger.setdefault(key, entry)

    @staticmethod
    def _outcome(entry: Mapping[str, Any], key: str) -> pay.Charge | pay.Refusal:
        return (
            pay.Charge(approval_no=key[-6:])
            if entry["charged"]
            else pay.Refusal(reason=pay.DeclineReason.CARD_DECLINED)
        )

    async def _step(self, act: Any) -> Any:
        fate = await self._steps.pause()
        if fate == FAILS:
            raise pay.ProcessorUnavailable("no answer")
        result = act()
        if fate == ANSWER_IS_LOST:
            raise pay.ProcessorUnavailable("the answer is lost")
        return result


def nights_of(order: orders.Order) -> list[date]:
    return [order.booking.stay.check_in + timedelta(days=day) for day in range(order.booking.stay.nights)]
