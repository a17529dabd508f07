"""An order as a row: the columns that are read."""

from gotohotel.columns import actor_of
from gotohotel.database import Row
from gotohotel.domain import Money
from order_svc.domain import FACTS, Booking, Facts, Order, PaymentError, Stay

STORED = f"""
    id, owner, name, phone_no, room_type, guest_cnt, check_in, check_out, currency, amount, refunded,
    {", ".join(FACTS)},
    confirmation_no, payment_error_reason, payment_error_message, payment_error_retry_after,
    attempt_id, attempt_until, canceled_by, version, revision, created_at, updated_at, expires_at
"""


def order_of(row: Row) -> Order:
    """The order stored in a row of STORED."""
    return Order(
        id=str(row["id"]),
        booking=Booking(
            owner=row["owner"],
            name=row["name"],
            phone_no=row["phone_no"],
            room_type=row["room_type"],
            guest_cnt=row["guest_cnt"],
            stay=Stay(row["check_in"], row["check_out"]),
        ),
        amount=Money(row["currency"], row["amount"]),
        refunded=Money(row["currency"], row["refunded"]),
        created_at=row["created_at"],
        updated_at=row["updated_at"],
        expires_at=row["expires_at"],
        facts=Facts(**{fact: row[fact] for fact in FACTS}),
        version=row["version"],
        revision=row["revision"],
        confirmation_no=row["confirmation_no"],
        payment_error=_payment_error(row),
        attempt_id=str(row["attempt_id"]) if row["attempt_id"] else None,
        attempt_until=row["attempt_until"],
        canceled_by=actor_of(row["canceled_by"]),
    )


def _payment_error(row: Row) -> PaymentError | None:
    if row["payment_error_reason"] is None:
        return None
    return PaymentError(
        reason=row["payment_error_reason"],
        message=row["payment_error_message"],
        retry_after_seconds=row["payment_error_retry_after"],
    )
