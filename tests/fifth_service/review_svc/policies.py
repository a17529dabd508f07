"""What review_svc learns from payment and reservation events."""

from gotohotel.pay.v1.events_pb2 import PaymentApproved
from gotohotel.policies import Policies
from gotohotel.reservation.v1.events_pb2 import ReservationConfirmed
from review_svc.store import UnitOfWork, open_work

policies: Policies[UnitOfWork] = Policies(open_work)


@policies.whenever(PaymentApproved)
def note_owner(event: PaymentApproved, work: UnitOfWork) -> None:
    """Records who may review the stay."""
    work.review(event.order_id).owner = event.booking.owner


@policies.whenever(ReservationConfirmed)
def open_review(event: ReservationConfirmed, work: UnitOfWork) -> None:
    """Opens the review: from now on the guest may write it."""
    work.review(event.order_id).confirmed = True
