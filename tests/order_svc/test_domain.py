"""The rules of an order.

Long because an order has many states, and every rule has a test.
"""

from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from itertools import permutations

import pytest

from gotohotel.domain import Invalid, Money
from order_svc.domain import (
    IN_PROGRESS,
    Booking,
    Order,
    OrderCanceled,
    Ordered,
    OrderExpired,
    OrderNotCancelable,
    OrderNotPayable,
    PaymentClosure,
    PaymentError,
    PaymentOutcome,
    RoomType,
    Status,
    Stay,
    StayBegun,
    declined,
)
from tests.conftest import DAY, DESK, GUEST

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
LATER = NOON + timedelta(minutes=20)
TODAY = date(2026, 1, 1)
PRIME = RoomType(
    id="Prime", version=1, display_name="Prime", capacity=10, max_guests=4, nightly_rate=Money("KRW", Decimal(240_000))
)
DECLINED = PaymentError(reason="CARD_DECLINED", message="")
NO_FUNDS = PaymentError(reason="INSUFFICIENT_FUNDS", message="")
REFUSED = PaymentOutcome(error=DECLINED)
BESIDE = PaymentOutcome(error=IN_PROGRESS, settled=False, attempt_id="a")
CLOSED = PaymentClosure(closed=True)
MINUTE = timedelta(minutes=1)


def booking(guest_cnt: int = 4, nights: int = 2) -> Booking:
    stay = Stay(TODAY, TODAY + timedelta(days=nights))
    return Booking(owner="alice", name="A", phone_no="", room_type="Prime", guest_cnt=guest_cnt, stay=stay)


def an_order() -> Order:
    """A new order."""
    return Order.place("o", booking(), PRIME, placed_at=NOON, expires_at=NOON + timedelta(minutes=15))


def a_paid_order() -> Order:
    """An order that is paid."""
    order = an_order()
    order.note_payment_approved(NOON)
    return order


def a_canceled_order() -> Order:
    """An order that the guest canceled and that was refunded."""
    order = a_paid_order()
    order.cancel("", by=DESK, at=NOON, today=DAY)
    order.note_payment_canceled(NOON, order.amount)
    order.collect_events()
    return order


def an_expired_order() -> Order:
    """An order that was not paid in time."""
    order = an_order()
    order.expire(CLOSED, at=LATER)
    order.collect_events()
    return order


def a_rejected_order() -> Order:
    """An order that the desk rejected."""
    order = a_paid_order()
    order.note_rejected(NOON)
    order.collect_events()
    return order


@pytest.mark.parametrize(
    ("check_in", "check_out", "nights"),
    [(None, None, 1), (None, TODAY + timedelta(days=3), 3), (TODAY + timedelta(days=365), None, 1)],
)
def test_dates_left_out_mean_tonight_one_night(check_in: date | None, check_out: date | None, nights: int) -> None:
    """Without a check-in date the stay starts tonight; without a check-out date it is one night."""
    assert Stay.starting(check_in, check_out, today=TODAY).nights == nights


@pytest.mark.parametrize(
    ("check_in", "check_out", "field"),
    [
        (TODAY - timedelta(days=1), None, "checkIn"),
        (TODAY + timedelta(days=366), None, "checkIn"),
        (TODAY, TODAY, "checkOut"),
        (TODAY, TODAY - timedelta(days=1), "checkOut"),
        (TODAY, TODAY + timedelta(days=29), "checkOut"),
    ],
)
def test_dates_that_make_no_stay_are_refused_by_field(check_in: date, check_out: date | None, field: str) -> None:
    """A stay must not be in the past, too far ahead, too long or without a night."""
    with pytest.raises(Invalid) as refusal:
        Stay.starting(check_in, check_out, today=TODAY)

    assert refusal.value.field == field


def test_a_new_order_costs_its_nights_and_announces_itself() -> None:
    """The price is fixed when the order is placed."""
    order = an_order()

    assert order.status == Status.PAYMENT_PENDING
    assert order.amount == Money("KRW", Decimal(480_000))
    assert [type(event) for event in order.collect_events()] == [Ordered]


@pytest.mark.parametrize("guest_cnt", [0, 5])
def test_a_room_takes_one_to_max_guests(guest_cnt: int) -> None:
    """The error names the field."""
    with pytest.raises(Invalid, match="guestCnt"):
        Order.place("o", booking(guest_cnt), PRIME, placed_at=NOON, expires_at=NOON)


def test_a_declined_payment_leaves_the_order_with_its_reason() -> None:
    """The order keeps the reason until a payment is approved."""
    order = an_order()
    order.start_payment("a", started_at=NOON, lifetime=MINUTE)

    order.settle_payment(order.attempt_id, PaymentOutcome(error=DECLINED), at=NOON)
    assert (order.status, order.payment_error, order.attempt_until) == (Status.PAYMENT_PENDING, DECLINED, None)

    order.settle_payment(order.attempt_id, PaymentOutcome(approved_at=NOON), at=NOON)
    assert (order.status, order.payment_error) == (Status.PAID, None)


def test_a_try_beside_another_does_not_hide_what_became_of_it() -> None:
    """A second attempt gets IN_PROGRESS. The order shows the decline of the first one, whichever is recorded first."""
    for outcomes in ([("b", BESIDE), ("a", REFUSED)], [("a", REFUSED), ("b", BESIDE)]):
        order = an_order()
        order.start_payment("a", started_at=NOON, lifetime=MINUTE)
        order.start_payment("b", started_at=NOON, lifetime=MINUTE)

        for attempt_id, outcome in outcomes:
            order.settle_payment(attempt_id, outcome, at=NOON)

        assert order.payment_error == DECLINED


def test_a_late_word_on_an_older_try_ends_no_newer_one() -> None:
    """While a newer attempt is in flight, the order does not expire; once it is settled, its outcome counts."""
    order = an_order()
    order.start_payment("a", started_at=NOON, lifetime=MINUTE)
    order.start_payment("b", started_at=LATER, lifetime=timedelta(minutes=6))

    order.settle_payment("a", PaymentOutcome(error=DECLINED), at=NOON)
    order.expire(CLOSED, at=LATER)
    still = order.status
    order.settle_payment("b", PaymentOutcome(error=NO_FUNDS), at=LATER)
    order.settle_payment("a", PaymentOutcome(error=DECLINED), at=LATER)

    assert (still, order.payment_error) == (Status.PAYMENT_PENDING, NO_FUNDS)


@pytest.mark.parametrize("ended", [a_canceled_order, an_expired_order, a_rejected_order])
def test_an_ended_order_cannot_be_paid(ended: Callable[[], Order]) -> None:
    """Final states never change: a later payment is refused and announces nothing."""
    order = ended()
    before = order.status

    with pytest.raises(OrderNotPayable):
        order.start_payment("a", started_at=NOON, lifetime=MINUTE)
    order.note_payment_approved(LATER)

    assert order.status == before
    assert order.collect_events() == []


@pytest.mark.parametrize("ended", [an_expired_order, a_rejected_order])
def test_an_order_that_others_ended_cannot_be_canceled(ended: Callable[[], Order]) -> None:
    """An expired or rejected order has nothing left to cancel."""
    with pytest.raises(OrderNotCancelable):
        ended().cancel("", by=DESK, at=NOON, today=DAY)


@pytest.mark.parametrize(("days", "may"), [(-1, True), (0, True), (1, False), (2, False), (400, False)])
def test_a_guest_cancels_until_the_day_of_arrival(days: int, may: bool) -> None:
    """From 00:00 of the next day on only the desk can cancel. A cancel that was asked for before stays as it is."""
    order, canceled = a_paid_order(), a_paid_order()
    date = order.booking.stay.check_in + timedelta(days=days)
    canceled.cancel("in time", by=DESK, at=NOON, today=DAY)

    if may:
        order.cancel("", by=GUEST, at=NOON, today=date)
    else:
        with pytest.raises(StayBegun):
            order.cancel("", by=GUEST, at=NOON, today=date)
        order.cancel("by the desk", by=DESK, at=NOON, today=DAY)
    canceled.cancel("again", by=GUEST, at=NOON, today=date)

    assert order.status == canceled.status == Status.CANCELING


def test_the_time_of_the_last_change_never_goes_back() -> None:
    """A call may have read the clock before the change that it follows."""
    changes: list[Callable[[Order], object]] = [
        lambda order: order.start_payment("a", started_at=NOON, lifetime=MINUTE),
        lambda order: order.settle_payment(order.attempt_id, REFUSED, at=NOON),
        lambda order: order.note_payment_approved(NOON),
        lambda order: order.cancel("", by=DESK, at=NOON, today=TODAY),
    ]
    for change in changes:
        order = an_order()
        order.updated_at = LATER
        change(order)
        assert order.updated_at == LATER


def test_canceling_twice_announces_once() -> None:
    """A repeated cancel changes nothing."""
    order = a_paid_order()
    order.collect_events()

    order.cancel("plans", by=DESK, at=NOON, today=DAY)
    order.cancel("again", by=DESK, at=LATER, today=DAY)

    assert [(type(event), event.version) for event in order.collect_events()] == [(OrderCanceled, 2)]
    assert order.status == Status.CANCELING


def test_an_order_does_not_expire_while_a_payment_is_in_flight() -> None:
    """It expires once after the attempt is settled."""
    order = an_order()
    order.collect_events()
    order.start_payment("a", started_at=LATER, lifetime=timedelta(minutes=6))

    order.expire(CLOSED, at=LATER)
    assert order.facts.expired_at is None

    order.settle_payment(order.attempt_id, PaymentOutcome(error=DECLINED), at=LATER)
    order.expire(CLOSED, at=LATER)
    order.expire(CLOSED, at=LATER)
    assert order.status == Status.EXPIRED
    assert [type(event) for event in order.collect_events()] == [OrderExpired]


def test_a_payment_that_comes_after_the_end_of_time_does_not_revive_the_order() -> None:
    """The order stays EXPIRED; reservation_svc has the payment refunded."""
    order = an_expired_order()

    order.note_payment_approved(LATER)
    order.note_reservation_canceled(LATER)

    assert order.status == Status.EXPIRED


FACTS: dict[str, Callable[[Order], None]] = {
    "paid": lambda order: order.note_payment_approved(NOON),
    "confirmed": lambda order: order.note_confirmed(NOON, "C1"),
    "rejected": lambda order: order.note_rejected(NOON),
    "canceled": lambda order: order.note_reservation_canceled(NOON),
    "refunded": lambda order: order.note_payment_canceled(NOON, order.amount),
}


@pytest.mark.parametrize(
    ("facts", "status"),
    [
        (("paid", "confirmed"), Status.CONFIRMED),
        (("paid", "refunded", "rejected"), Status.REJECTED),
        (("paid", "confirmed", "refunded", "canceled"), Status.CANCELED),
        (("paid", "refunded"), Status.PAID),
    ],
)
@pytest.mark.parametrize("canceled_by_guest", [False, True])
def test_facts_lead_to_the_same_state_in_any_order(
    facts: tuple[str, ...], status: Status, canceled_by_guest: bool
) -> None:
    """Events may arrive in any order and more than once."""
    found = set()
    for sequence in permutations(facts):
        order = an_order()
        if canceled_by_guest:
            order.cancel("", by=DESK, at=NOON, today=DAY)
        for fact in (*sequence, *sequence):
            FACTS[fact](order)
        found.add((order.status, order.refunded, order.confirmation_no))

    expected = status
    if canceled_by_guest:
        expected = Status.CANCELED if "refunded" in facts else Status.CANCELING
    assert len(found) == 1
    assert found.pop()[0] == expected


def test_a_hold_has_an_absolute_end() -> None:
    """However many attempts are made, they extend the hold by at most one attempt's lifetime."""
    order = an_order()

    for minutes in range(0, 60, 5):
        order.start_payment(f"{minutes}", started_at=NOON + minutes * MINUTE, lifetime=MINUTE)

    assert order.attempt_until == order.expires_at + MINUTE
    order.expire(CLOSED, at=LATER)
    assert order.status == Status.EXPIRED


def test_overlapping_attempts_with_a_declined_card_leave_nothing_in_flight() -> None:
    """The attempt that pay_svc worked on is settled, whichever call asked and in whichever order the answers arrive."""
    for first_heard in ("b", "a"):
        order = an_order()
        order.start_payment("a", started_at=NOON, lifetime=MINUTE)
        order.start_payment("b", started_at=NOON, lifetime=MINUTE)
        answers = {"a": REFUSED, "b": BESIDE}

        for attempt_id in sorted(answers, reverse=first_heard == "b"):
            order.settle_payment(attempt_id, answers[attempt_id], at=NOON)
        order.note_payment_declined("a", "CARD_DECLINED", at=NOON)

        assert order.attempt_until is None
        assert order.payment_error == REFUSED.error or order.payment_error == declined("CARD_DECLINED")


def test_a_decline_that_only_the_event_tells_replaces_what_was_said_before() -> None:
    """PaymentDeclined replaces IN_PROGRESS, even if it comes from a release that did not name the attempt."""
    for attempt_id in ("a", ""):
        order = an_order()
        order.start_payment("a", started_at=NOON, lifetime=MINUTE)
        order.settle_payment("a", PaymentOutcome(error=IN_PROGRESS, settled=False), at=NOON)

        order.note_payment_declined(attempt_id, "CARD_DECLINED", at=NOON)
        order.note_payment_declined("older", "EXPIRED_CARD", at=NOON)

        assert order.payment_error == declined("CARD_DECLINED")


def test_an_order_that_was_charged_does_not_expire() -> None:
    """If pay_svc reports a charge, the order becomes paid; while pay_svc does not know, the order stays as it is."""
    order = an_order()

    order.expire(PaymentClosure(closed=False), at=LATER)
    assert order.status == Status.PAYMENT_PENDING

    order.expire(PaymentClosure(closed=False, approved_at=NOON), at=LATER)
    assert (order.status, order.facts.expired_at) == (Status.PAID, None)


def test_a_stored_stay_is_not_judged_by_todays_limit() -> None:
    """The limit of nights applies to new stays; a longer stay that is stored still loads."""
    stay = Stay(TODAY, TODAY + timedelta(days=40))

    with pytest.raises(Invalid):
        Stay.starting(stay.check_in, stay.check_out, today=TODAY)

    assert stay.nights == 40


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        ("INSUFFICIENT_FUNDS", "INSUFFICIENT_FUNDS"),
        ("PAYMENT_UNAVAILABLE", "PAYMENT_UNAVAILABLE"),
        ("STOLEN_CARD", "CARD_DECLINED"),
    ],
)
def test_a_reason_that_is_not_known_means_another_card(reason: str, said: str) -> None:
    """An unknown reason is a decline, not an outage: it has no time to retry, because the same card will not help."""
    error = declined(reason)

    assert error.reason == said
    assert (error.retry_after_seconds is None) == (said != "PAYMENT_UNAVAILABLE")
