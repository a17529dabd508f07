"""How facts become a page, and that the page has the same status as the order."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import combinations, permutations
from typing import Any

from gotohotel.domain import Money
from mypage_svc.domain import Fact, MyPage
from order_svc.domain import Facts, status_from

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
AMOUNT = Money("KRW", Decimal(1000))
STAY = {"check_in": "2026-02-01", "check_out": "2026-02-03"}
BOOKING = {"owner": "alice", "name": "A", "room_type": "Prime", "guest_cnt": 2, **STAY}


def fact(event: str, source: str, version: int, **said: Any) -> Fact:
    return Fact(source=source, version=version, event=event, time=NOON + timedelta(seconds=version), **said)


STORY = (
    fact("Ordered", "order", 1, booking=BOOKING, amount=AMOUNT),
    fact("PaymentDeclined", "pay", 1, detail="CARD_DECLINED"),
    fact("PaymentApproved", "pay", 2, booking=BOOKING, amount=AMOUNT),
    fact("ReservationTaken", "reservation", 1),
    fact("ReservationConfirmed", "reservation", 2, detail="C1"),
)


def test_a_page_is_the_same_in_whatever_order_its_facts_came() -> None:
    """Facts may arrive in any order and more than once."""
    pages = [MyPage.of("o", (*facts, *facts)) for facts in permutations(STORY)]

    page = pages[0]
    assert all(other == page for other in pages)
    assert (page.status, page.payment_status, page.reservation_status) == ("CONFIRMED", "APPROVED", "CONFIRMED")
    assert (page.amount, page.confirmation_no) == (AMOUNT, "C1")


def test_the_order_comes_first_whatever_two_clocks_say() -> None:
    """pay_svc's clock may be a few milliseconds behind order_svc's."""
    ordered, approved = STORY[0], STORY[2]
    early = replace(approved, time=ordered.time - timedelta(milliseconds=3))

    page = MyPage.of("o", [early, ordered])

    assert [each.event for each in page.facts] == ["Ordered", "PaymentApproved"]


def test_my_page_and_order_svc_derive_the_same_status_from_the_same_facts() -> None:
    """Both implementations are compared for every combination of facts."""
    events = {
        "PaymentApproved": "paid_at",
        "OrderExpired": "expired_at",
        "OrderCanceled": "cancel_asked_at",
        "PaymentCanceled": "payment_canceled_at",
        "ReservationConfirmed": "confirmed_at",
        "ReservationRejected": "rejected_at",
        "ReservationCanceled": "reservation_canceled_at",
    }
    for count in range(len(events) + 1):
        for chosen in combinations(events, count):
            order = Facts(**{events[event]: NOON for event in chosen})
            page = MyPage.of("o", (fact(event, "x", number) for number, event in enumerate(chosen)))

            assert page.status == status_from(order), chosen


def test_a_page_without_a_booking_shows_nothing_of_one() -> None:
    """A later event may arrive before Ordered; then the page has no booking and no amount."""
    page = MyPage.of("o", [fact("OrderCanceled", "order", 2)])

    assert page.booking == {}
    assert page.amount is None


def test_a_refund_is_what_the_payment_said() -> None:
    """The page shows the refunded amount of PaymentCanceled."""
    page = MyPage.of("o", [*STORY, fact("PaymentCanceled", "pay", 3, amount=AMOUNT)])

    assert page.refunded == AMOUNT
    assert page.payment_status == "CANCELED"
