"""What the desk believes."""

from datetime import UTC, datetime, timedelta

import pytest
from google.type.money_pb2 import Money

from gotohotel.bus.consumer import Untrusted
from gotohotel.ids import first_id_at, new_id
from gotohotel.order.v1.events_pb2 import Booking, OrderCanceled
from gotohotel.pay.v1.events_pb2 import PaymentApproved
from gotohotel.signatures import SigningKey, VerifyKey
from reservation_svc.policies import ordered

KEY = SigningKey("a secret of this test, 32 letters")
MIGRATED = datetime.now(UTC) - timedelta(days=1)


def now() -> datetime:
    """The database's time."""
    return datetime.now(UTC)


require = ordered(VerifyKey(KEY.public), unsigned_before=MIGRATED, clock=now)


def approved(order_id: str, *, signed_by: SigningKey | None = KEY) -> PaymentApproved:
    """A payment of a booking."""
    booking, amount = Booking(name="Kim", room_type="Prime"), Money(currency_code="KRW", units=1000)
    if signed_by:
        signed_by.sign(booking, order_id, amount.currency_code, amount.units, amount.nanos)
    return PaymentApproved(order_id=order_id, booking=booking, amount=amount)


def test_a_payment_of_what_was_ordered_is_believed() -> None:
    """order_svc has signed the booking, the order and the amount. Events of order_svc itself need no signature."""
    require(approved(new_id()))
    require(OrderCanceled(order_id=new_id()))


def test_a_payment_that_nobody_ordered_is_not_believed() -> None:
    """Without a signature, with somebody else's, for another order, or for another amount."""
    cheaper, moved = approved(new_id()), approved(new_id())
    cheaper.amount.units = 1
    moved.order_id = new_id()

    for event in (
        approved(new_id(), signed_by=None),
        approved(new_id(), signed_by=SigningKey("x" * 32)),
        cheaper,
        moved,
    ):
        with pytest.raises(Untrusted):
            require(event)


def test_orders_of_the_release_before_have_no_signature() -> None:
    """They are believed by the time of the order, which is in its id; a wrong signature never is."""
    older = first_id_at(MIGRATED - timedelta(seconds=1))

    require(approved(older, signed_by=None))
    with pytest.raises(Untrusted):
        require(approved(older, signed_by=SigningKey("x" * 32)))
    with pytest.raises(Untrusted):
        require(approved(first_id_at(MIGRATED + timedelta(seconds=1)), signed_by=None))
    with pytest.raises(Untrusted):
        require(approved(new_id().upper(), signed_by=None))  # "A" is less than "a"


def test_the_exception_for_the_release_before_ends() -> None:
    """A hotel that is new has none, and after a month there is none any more."""
    key, older = VerifyKey(KEY.public), first_id_at(MIGRATED - timedelta(seconds=1))

    with pytest.raises(Untrusted):
        ordered(key, unsigned_before=None, clock=now)(approved(older, signed_by=None))
    with pytest.raises(Untrusted):
        ordered(key, unsigned_before=MIGRATED, clock=lambda: now() + timedelta(days=30))(
            approved(older, signed_by=None)
        )
