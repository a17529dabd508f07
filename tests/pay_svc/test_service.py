"""An order is charged at most once, whatever fails. The store and the sandbox's ledger are real.

Long because every way in which a payment can fail has a test.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from gotohotel.database import Database
from gotohotel.domain import Invalid, Money
from gotohotel.ids import new_id
from gotohotel.order.v1 import events_pb2 as order_events
from pay_svc import service, wire
from pay_svc.domain import (
    AttemptLimits,
    AttemptOpen,
    Booking,
    Card,
    Charge,
    MaskedCard,
    Payment,
    PaymentChanged,
    ProcessorUnavailable,
    Refusal,
    Status,
)
from pay_svc.sandbox import SandboxProcessor
from pay_svc.store import PostgresPayments
from tests.conftest import DESK

AMOUNT = Money("KRW", Decimal(1000))
BOOKING = Booking(name="A", phone_no="", room_type="P", guest_cnt=1, check_in="", check_out="", owner="alice")
GOOD, DECLINED, ERROR, LOST = "4242424242424242", "4000000000000002", "4000000000000119", "4000000000000259"


def clock() -> datetime:
    """The database's time."""
    return datetime.now(UTC)


class Desk:
    """pay_svc's use cases for one order of a guest."""

    def __init__(
        self, database: Database, processor: SandboxProcessor | None = None, *, owner: str | None = None
    ) -> None:
        self.booking = replace(BOOKING, owner=owner or new_id())
        self.payments = PostgresPayments(database.autocommit)
        self.processor = processor or SandboxProcessor(database, delay_ms=0)
        self.database = database
        self.order_id = new_id()

    async def pay(self, number: str, attempt_id: str | None = None) -> Payment:
        card = Card(number)
        return await service.process_payment(
            self.payments,
            self.processor,
            order_id=self.order_id,
            attempt_id=attempt_id or new_id(),
            amount=AMOUNT,
            booking=self.booking,
            card=card,
            masked_card=MaskedCard(brand=card.brand, last4=card.last4, fingerprint=b"f"),
            limits=AttemptLimits(),
            timeout_seconds=1,
            clock=clock,
        )

    async def cancel(self) -> Payment:
        return await service.cancel_payment(
            self.payments, self.processor, self.order_id, by=DESK, currency="KRW", timeout_seconds=1, clock=clock
        )

    async def settle(self) -> None:
        await service.settle_payment(self.payments, self.processor, self.order_id, timeout_seconds=1, clock=clock)

    async def close(self) -> Payment:
        return await service.close_payment(self.payments, self.order_id, currency="KRW", clock=clock)

    async def charges(self) -> tuple[int, int]:
        """The number of charges, and how many of them are not refunded."""
        [row] = await self.database.autocommit.fetch(
            "SELECT count(*) AS made, count(*) FILTER (WHERE refunded_at IS NULL) AS standing "
            "FROM ledger WHERE outcome = 'CHARGED' AND order_id = $1",
            self.order_id,
        )
        return row["made"], row["standing"]

    async def announced(self) -> list[str]:
        rows = await self.database.autocommit.fetch("SELECT type FROM outbox ORDER BY aggregate_version")
        return [row["type"].split(".")[-1] for row in rows]


class AwayProcessor(SandboxProcessor):
    """The sandbox, unreachable while `away`: a confirm is still executed, but its answer is lost."""

    away = True

    async def confirm(self, key: str, *, order_id: str, amount: Money, card: Card) -> Charge | Refusal:
        outcome = await super().confirm(key, order_id=order_id, amount=amount, card=card)
        self._stay_away()
        return outcome

    async def cancel(self, key: str) -> Charge | Refusal:
        self._stay_away()
        return await super().cancel(key)

    async def refund(self, key: str) -> None:
        self._stay_away()
        await super().refund(key)

    def _stay_away(self) -> None:
        if self.away:
            raise ProcessorUnavailable("away")


async def test_a_payment_is_approved_and_announced_with_its_booking(pay_database: Database) -> None:
    """The ledger has one charge, and the outbox has PaymentApproved."""
    desk = Desk(pay_database)

    payment = await desk.pay(GOOD)

    assert payment.status == Status.APPROVED
    assert await desk.charges() == (1, 1)
    assert await desk.announced() == ["PaymentApproved"]


async def test_a_declined_payment_can_be_tried_with_another_card(pay_database: Database) -> None:
    """The decline is announced, and so is the approval of the second attempt."""
    desk = Desk(pay_database)

    assert (await desk.pay(DECLINED)).decline_reason == "CARD_DECLINED"
    assert (await desk.pay(GOOD)).status == Status.APPROVED

    assert await desk.charges() == (1, 1)
    assert await desk.announced() == ["PaymentDeclined", "PaymentApproved"]


async def test_an_approved_payment_is_never_charged_again(pay_database: Database) -> None:
    """Neither the same attempt, nor another one, nor fifty at once charge it again."""
    desk, attempt = Desk(pay_database), new_id()

    await asyncio.gather(*(desk.pay(GOOD, attempt) for _ in range(25)), *(desk.pay(GOOD) for _ in range(25)))
    await desk.settle()
    payment = await desk.pay(GOOD)

    assert payment.status == Status.APPROVED
    assert await desk.charges() == (1, 1)
    assert await desk.announced() == ["PaymentApproved"]


async def test_a_charge_whose_answer_is_lost_is_found_by_asking(pay_database: Database) -> None:
    """If the answer is lost, the processor is asked for the outcome."""
    desk = Desk(pay_database)

    payment = await desk.pay(LOST)

    assert payment.status == Status.APPROVED
    assert await desk.charges() == (1, 1)


async def test_an_error_of_the_processor_charges_nothing(pay_database: Database) -> None:
    """The attempt is closed without a charge, and another attempt may follow."""
    desk = Desk(pay_database)

    assert (await desk.pay(ERROR)).decline_reason == "PAYMENT_UNAVAILABLE"
    assert (await desk.pay(GOOD)).status == Status.APPROVED

    assert await desk.charges() == (1, 1)


async def test_an_unknown_outcome_stays_pending_until_it_is_settled(pay_database: Database) -> None:
    """While the outcome is unknown, no other attempt starts."""
    processor = AwayProcessor(pay_database, delay_ms=0)
    desk = Desk(pay_database, processor)

    assert (await desk.pay(GOOD)).status == Status.PENDING
    assert (await desk.pay(GOOD)).status == Status.PENDING
    processor.away = False
    await desk.settle()

    assert (await desk.pay(GOOD)).status == Status.APPROVED
    assert await desk.charges() == (1, 1)


class AskOnlyProcessor(SandboxProcessor):
    """The sandbox as a processor that can't close an unseen key. `between` runs after `create`."""

    closes_unseen_keys = False

    def __init__(self, ledger: Database, *, between: Callable[[], Awaitable[object]] | None = None) -> None:
        super().__init__(ledger, delay_ms=0)
        self.asked: list[str] = []
        self._between = between

    async def create(self, key: str, *, order_id: str, amount: Money) -> None:
        await super().create(key, order_id=order_id, amount=amount)
        if self._between:
            await self._between()

    async def cancel(self, key: str) -> Charge | Refusal:
        self.asked.append(key)
        return await super().cancel(key)


async def test_a_processor_that_can_only_be_asked_charges_once(pay_database: Database) -> None:
    """An attempt with an unknown outcome is settled by asking for the outcome of its key."""
    processor = AskOnlyProcessor(pay_database)
    desk = Desk(pay_database, processor)

    assert (await desk.pay(LOST)).status == Status.APPROVED

    assert len(processor.asked) == 1
    assert await desk.charges() == (1, 1)


async def test_an_attempt_that_is_settled_before_it_is_confirmed_is_never_charged(pay_database: Database) -> None:
    """The processor has not received the card and is not asked. The call that made the attempt does not send it."""
    processor = AskOnlyProcessor(pay_database)
    desk = Desk(pay_database, processor)
    processor._between = desk.settle

    assert (await desk.pay(GOOD)).decline_reason == "PAYMENT_UNAVAILABLE"

    assert processor.asked == []
    assert await desk.charges() == (0, 0)


async def test_an_attempt_that_was_settled_as_uncharged_is_never_charged_later(pay_database: Database) -> None:
    """A charge that reaches the processor later is refused."""
    processor, key = SandboxProcessor(pay_database, delay_ms=0), new_id()

    settled = await processor.cancel(key)
    charged = await processor.confirm(key, order_id="o", amount=AMOUNT, card=Card(GOOD))

    assert isinstance(settled, Refusal)
    assert isinstance(charged, Refusal)


async def test_a_cancel_gives_the_money_back_once(pay_database: Database) -> None:
    """A repeated cancel changes nothing, and paying after it charges nothing."""
    desk = Desk(pay_database)
    await desk.pay(GOOD)

    first, second = await desk.cancel(), await desk.cancel()
    after = await desk.pay(GOOD)

    assert [payment.status for payment in (first, second, after)] == [Status.CANCELED] * 3
    assert second.refunded == AMOUNT
    assert await desk.charges() == (1, 0)
    assert await desk.announced() == ["PaymentApproved", "PaymentCanceled"]


async def test_a_cancel_before_any_payment_forbids_it(pay_database: Database) -> None:
    """An order without a payment becomes canceled, and a later attempt charges nothing."""
    desk = Desk(pay_database)

    assert (await desk.cancel()).refunded == Money("KRW", Decimal(0))
    assert (await desk.pay(GOOD)).status == Status.CANCELED

    assert await desk.charges() == (0, 0)


async def test_a_cancel_beside_a_payment_leaves_nothing_charged(pay_database: Database) -> None:
    """However the two calls interleave, the order is not charged in the end."""
    for _ in range(30):
        desk = Desk(pay_database, SandboxProcessor(pay_database, delay_ms=3))

        await asyncio.gather(desk.pay(GOOD), desk.cancel(), return_exceptions=True)
        await desk.settle()
        payment = await desk.cancel()

        assert payment.status == Status.CANCELED
        assert (await desk.charges())[1] == 0


async def test_a_refund_that_fails_is_carried_on(pay_database: Database) -> None:
    """The caller gets an error, but the cancel stands: no new attempt starts, and the job makes the refund."""
    processor = AwayProcessor(pay_database, delay_ms=0)
    processor.away = False
    desk = Desk(pay_database, processor)
    await desk.pay(GOOD)
    processor.away = True

    with pytest.raises(ProcessorUnavailable):
        await desk.cancel()
    processor.away = False
    await desk.settle()

    assert (await desk.pay(GOOD)).status == Status.CANCELED
    assert await desk.charges() == (1, 0)


async def test_a_payment_that_cannot_be_settled_holds_up_no_other(pay_database: Database) -> None:
    """A payment that was returned is not due again at once, so that others follow. Saving it makes it due again."""
    stuck, other = Desk(pay_database, AwayProcessor(pay_database, delay_ms=0)), Desk(pay_database)
    for desk in (stuck, other):
        await desk.payments.add(_asked_to_cancel(desk.order_id))

    seen = [await stuck.payments.unsettled(open_for=timedelta(0), limit=1) for _ in range(3)]

    assert seen == [[stuck.order_id], [other.order_id], []]
    payment = await stuck.payments.find(stuck.order_id)
    assert payment is not None
    await stuck.payments.save(payment)
    assert await stuck.payments.unsettled(open_for=timedelta(0), limit=1) == [stuck.order_id]


async def test_an_attempt_that_may_still_be_at_the_processor_is_left_alone(pay_database: Database) -> None:
    """Asking for its outcome would close its key while the call still uses it."""
    desk, processor = Desk(pay_database), AwayProcessor(pay_database, delay_ms=0)
    desk.processor = processor
    await desk.pay(GOOD)

    assert await desk.payments.unsettled(open_for=timedelta(minutes=1), limit=1) == []
    assert await desk.payments.unsettled(open_for=timedelta(0), limit=1) == [desk.order_id]


def _asked_to_cancel(order_id: str) -> Payment:
    now = datetime.now(UTC) - timedelta(minutes=1)
    payment = Payment(
        id=new_id(), order_id=order_id, amount=AMOUNT, refunded=Money.zero("KRW"), created_at=now, updated_at=now
    )
    payment.ask_cancel(by=DESK, at=now)
    return payment


async def test_no_card_number_is_stored(pay_database: Database) -> None:
    """Only the brand, the last four digits and a keyed hash are stored."""
    desk = Desk(pay_database)
    await desk.pay(GOOD)

    [row] = await pay_database.autocommit.fetch("SELECT payments.*, entries.* FROM payments, entries")

    assert GOOD not in str(dict(row))
    assert (row["card_brand"], row["card_last4"]) == ("VISA", "4242")


@pytest.mark.parametrize("number", ["", "4242", "4242424242424241", "4" * 20, "424242424242424a"])
def test_what_is_no_card_number_is_refused(number: str) -> None:
    """A card number has 13 to 19 digits and passes the Luhn check."""
    with pytest.raises(Invalid, match="cardNo"):
        Card(number)


def test_a_cards_number_is_not_shown() -> None:
    """The repr of a card does not contain its number, so that a log does not either."""
    assert GOOD not in repr(Card(GOOD))


async def test_closing_a_payment_that_is_not_charged_forbids_it(pay_database: Database) -> None:
    """This holds before any attempt and after a declined one. Closing again changes nothing."""
    untouched, refused = Desk(pay_database), Desk(pay_database)
    await refused.pay(DECLINED)

    for desk in (untouched, refused):
        assert [(await desk.close()).status for _ in range(2)] == [Status.CANCELED] * 2
        assert (await desk.pay(GOOD)).status == Status.CANCELED
        assert (await desk.cancel()).status == Status.CANCELED
        assert await desk.charges() == (0, 0)


async def test_closing_a_payment_that_is_charged_changes_nothing(pay_database: Database) -> None:
    """The charge stands, and a cancel can still refund it."""
    desk = Desk(pay_database)
    await desk.pay(GOOD)

    assert (await desk.close()).status == Status.APPROVED

    assert await desk.charges() == (1, 1)
    assert (await desk.cancel()).refunded == AMOUNT


@pytest.mark.parametrize(("card", "ends"), [(GOOD, Status.APPROVED), (ERROR, Status.CANCELED)])
async def test_the_truth_of_an_open_attempt_decides_about_a_close(
    pay_database: Database, card: str, ends: Status
) -> None:
    """Until the outcome is known, the payment is not closed and no attempt starts. Then it is charged or closed."""
    processor = AwayProcessor(pay_database, delay_ms=0)
    desk = Desk(pay_database, processor)
    await desk.pay(card)

    assert (await desk.close()).status == Status.PENDING
    processor.away = False
    assert (await desk.pay(GOOD)).status == Status.PENDING
    await desk.settle()

    assert (await desk.close()).status == ends
    assert (await desk.pay(GOOD)).status == ends
    assert (await desk.charges())[1] == (1 if ends == Status.APPROVED else 0)


async def test_a_declined_attempt_after_which_the_payment_is_closed_is_not_tried_again(pay_database: Database) -> None:
    """No attempt starts after order_svc has asked to close the payment."""
    processor = AwayProcessor(pay_database, delay_ms=0)
    desk = Desk(pay_database, processor)
    await desk.pay(ERROR)
    payment = await desk.close()
    assert payment.close_asked_at is not None
    payment.attempt_open_since = None  # as if its outcome were known: still no attempt starts

    assert not payment.may_be_tried(new_id())


async def test_a_charge_is_given_back_once_and_that_can_be_counted(pay_database: Database) -> None:
    """Concurrent refunds of a charge add one entry to the ledger."""
    processor, key = SandboxProcessor(pay_database, delay_ms=0), new_id()
    await processor.confirm(key, order_id="o", amount=AMOUNT, card=Card(GOOD))

    await asyncio.gather(*(processor.refund(key) for _ in range(10)))

    [row] = await pay_database.autocommit.fetch("SELECT refunds, refunded_at FROM ledger WHERE key = $1", key)
    assert row["refunds"] == 1
    assert row["refunded_at"] is not None


async def test_what_a_newer_release_knows_of_a_booking_is_passed_over_and_kept(pay_database: Database) -> None:
    """Unknown keys in a stored booking break neither a read nor a list, and a save keeps them."""
    desk = Desk(pay_database)
    await desk.pay(DECLINED)
    connection = pay_database.autocommit
    await connection.execute("UPDATE payments SET booking = booking || jsonb_build_object('special_request', 'late')")

    assert (await desk.pay(GOOD)).booking == desk.booking
    assert len(await desk.payments.page(owner=None, before="ffffffff-ffff-ffff-ffff-ffffffffffff", size=9)) == 1

    assert await connection.fetchval("SELECT booking ->> 'special_request' FROM payments") == "late"


async def test_of_two_attempts_at_once_one_is_refused(pay_database: Database) -> None:
    """Both were allowed when they were loaded: only one card is sent to the processor."""
    desk, limits = Desk(pay_database), AttemptLimits()
    await desk.pay(DECLINED)
    one, other = [await desk.payments.get(desk.order_id, owner=None) for _ in range(2)]
    for payment in (one, other):
        assert payment.card is not None
        assert payment.start_attempt(
            new_id(), amount=AMOUNT, booking=desk.booking, card=payment.card, started_at=clock(), limits=limits
        )
    await desk.payments.save(one, limits)

    with pytest.raises(PaymentChanged):
        await desk.payments.save(other, limits)

    assert (await desk.payments.get(desk.order_id, owner=None)).attempt_id == one.attempt_id


async def test_only_an_attempt_changes_what_is_paid_for(pay_database: Database) -> None:
    """An outcome is stored without the booking, which may have been erased since it was loaded."""
    desk = Desk(pay_database)
    await desk.pay(DECLINED)
    payment = await desk.payments.get(desk.order_id, owner=None)
    assert payment.booking is not None
    stored = payment.booking
    payment.booking = replace(stored, phone_no="01000000000", owner="somebody else")
    payment.amount = Money("KRW", payment.amount.amount + 1)

    await desk.payments.save(payment)

    payment = await desk.payments.get(desk.order_id, owner=None)
    assert (payment.booking, payment.amount) == (stored, AMOUNT)


async def test_fields_that_only_a_newer_release_knows_are_handed_on(pay_database: Database) -> None:
    """Unknown fields of a received booking are stored, and are part of the booking in later messages."""
    message = order_events.Booking(name="A", owner="alice")
    newer = message.SerializeToString() + b"\x9a\x06\x04late"  # field 99
    booking = wire.booking_from_proto(order_events.Booking.FromString(newer))
    now = datetime.now(UTC)
    payment = Payment(
        id=new_id(), order_id=new_id(), amount=AMOUNT, refunded=Money.zero("KRW"), created_at=now, updated_at=now,
        booking=booking,
    )  # fmt: skip
    payments = PostgresPayments(pay_database.autocommit)
    await payments.add(payment)

    stored = await payments.find(payment.order_id)

    assert stored is not None
    assert stored.booking is not None
    assert wire.booking_to_proto(stored.booking).SerializeToString() == newer


def test_a_payment_is_not_canceled_while_an_attempt_is_open() -> None:
    """The card may be charged at that moment, so the outcome must be known first."""
    now = datetime.now(UTC)
    payment = Payment(
        id=new_id(), order_id=new_id(), amount=AMOUNT, refunded=Money.zero("KRW"), created_at=now, updated_at=now
    )
    card = MaskedCard(brand="VISA", last4="4242", fingerprint=b"")
    assert payment.start_attempt(
        new_id(), amount=AMOUNT, booking=BOOKING, card=card, started_at=now, limits=AttemptLimits()
    )

    with pytest.raises(AttemptOpen):
        payment.cancel(at=now)

    assert payment.status == Status.PENDING
    assert not payment.start_attempt(
        new_id(), amount=AMOUNT, booking=BOOKING, card=card, started_at=now, limits=AttemptLimits()
    )
