"""Ending a reservation while pay_svc fails: no live booking has a canceled payment. The store is real."""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from decimal import Decimal

import pytest

from gotohotel.database import Database
from gotohotel.domain import Money
from gotohotel.ids import new_id
from reservation_svc import service
from reservation_svc.domain import Booking, PaymentNotCanceled, Reservation, Status
from reservation_svc.store import PostgresReservations
from tests.conftest import DESK

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
BOOKING = Booking(
    name="A", phone_no="", room_type="P", guest_cnt=1, check_in="", check_out="", amount=Money("KRW", Decimal(1))
)


class FakePayments:
    """A pay_svc: `meanwhile` runs during the next call; a call raises the next failure in `fails`, or cancels."""

    def __init__(self) -> None:
        self.canceled = False
        self.fails: list[PaymentNotCanceled | None] = []
        self.meanwhile: Callable[[], Awaitable[object]] | None = None

    async def cancel(self, _: str, *, by: object) -> None:
        assert by == DESK
        meanwhile, self.meanwhile = self.meanwhile, None
        failure = self.fails.pop(0) if self.fails else None
        if meanwhile:
            await meanwhile()
        if failure:
            raise failure
        self.canceled = True


NEVER_ASKED = PaymentNotCanceled("no host", never_asked=True)
MAYBE_ASKED = PaymentNotCanceled("no answer", never_asked=False)


class Desk:
    """The use cases for one received reservation."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.reservations = PostgresReservations(database.autocommit)
        self.payments = FakePayments()
        self.order_id = new_id()

    async def receive(self) -> None:
        reservation = Reservation(order_id=self.order_id, created_at=NOW, updated_at=NOW)
        reservation.take(BOOKING, at=NOW)
        await self.reservations.save(reservation)

    async def cancel(self) -> Reservation:
        return await service.end_reservation(
            self.reservations,
            self.payments,
            self.order_id,
            status=Status.CANCELED,
            reason="",
            by=DESK,
            clock=lambda: NOW,
        )

    async def run_the_job(self) -> None:
        await self.database.autocommit.execute("UPDATE reservations SET next_try_at = now()")
        for order_id in await self.reservations.due_endings(limit=10):
            await service.finish_ending(self.reservations, self.payments, order_id, clock=lambda: NOW)

    async def status(self) -> Status:
        return (await self.reservations.get(self.order_id)).status


@pytest.fixture
async def desk(reservation_database: Database) -> Desk:
    """A desk that has received a reservation."""
    made = Desk(reservation_database)
    await made.receive()
    return made


async def test_a_cancel_that_pay_svc_never_heard_of_changes_nothing(desk: Desk) -> None:
    """The reservation stays RECEIVED without an ending, and its payment is not canceled."""
    desk.payments.fails = [NEVER_ASKED]

    with pytest.raises(PaymentNotCanceled):
        await desk.cancel()
    await desk.run_the_job()

    reservation = await desk.reservations.get(desk.order_id)
    assert (reservation.status, reservation.ending, desk.payments.canceled) == (Status.RECEIVED, None, False)


async def test_a_cancel_that_pay_svc_may_have_heard_of_is_carried_through(desk: Desk) -> None:
    """The job completes the cancel after the desk's own call."""
    desk.payments.fails = [MAYBE_ASKED]
    with pytest.raises(PaymentNotCanceled):
        await desk.cancel()

    await desk.run_the_job()

    assert (await desk.status(), desk.payments.canceled) == (Status.CANCELED, True)


async def test_the_first_of_two_cancels_cannot_withdraw_the_second(desk: Desk) -> None:
    """The first cancel never reaches pay_svc, but the second one does meanwhile: the reservation is canceled."""
    desk.payments.fails = [NEVER_ASKED]
    desk.payments.meanwhile = desk.cancel

    with pytest.raises(PaymentNotCanceled):
        await desk.cancel()

    assert (await desk.status(), desk.payments.canceled) == (Status.CANCELED, True)


async def test_a_second_cancel_that_begins_between_is_not_withdrawn_either(desk: Desk) -> None:
    """If the first cancel withdraws the ending while the second one cancels the payment, the reservation still ends."""

    async def begin_the_second() -> None:
        async def let_the_first_withdraw() -> None:
            reservation = await desk.reservations.get(desk.order_id)
            reservation.ending = None  # what a withdrawal that came first would leave
            await desk.reservations.save(reservation)

        desk.payments.meanwhile = let_the_first_withdraw
        await desk.cancel()

    desk.payments.fails = [NEVER_ASKED]
    desk.payments.meanwhile = begin_the_second

    with pytest.raises(PaymentNotCanceled):
        await desk.cancel()

    assert (await desk.status(), desk.payments.canceled) == (Status.CANCELED, True)


async def test_a_repetition_that_was_never_sent_withdraws_nothing(desk: Desk) -> None:
    """The attempt before it may have reached pay_svc, so the job completes the cancel."""
    desk.payments.fails = [MAYBE_ASKED, NEVER_ASKED]
    for _ in range(2):
        with pytest.raises(PaymentNotCanceled):
            await desk.cancel()

    await desk.run_the_job()

    assert (await desk.status(), desk.payments.canceled) == (Status.CANCELED, True)
