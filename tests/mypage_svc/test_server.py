"""MyPageService over real PostgreSQL."""

from datetime import UTC, datetime

import pytest

from gotohotel.database import Database
from gotohotel.domain import Invalid
from gotohotel.ids import new_id
from gotohotel.mypage.v1 import mypage_service_pb2 as pb
from gotohotel.order.v1.order_service_pb2 import Order
from gotohotel.pay.v1.pay_service_pb2 import Payment
from gotohotel.reservation.v1.reservation_service_pb2 import Reservation
from gotohotel.rpc.identity import Caller
from mypage_svc.domain import MyPageNotFound
from mypage_svc.server import MyPageServer
from mypage_svc.store import Changes, PostgresPages
from mypage_svc.watches import Watches
from tests.mypage_svc.test_domain import STORY
from tests.mypage_svc.test_store import stored


def server_of(database: Database) -> MyPageServer:
    """The server over this database; nobody watches."""
    pages = PostgresPages(database.autocommit)
    return MyPageServer(pages, Watches(pages, Changes("")), clock=lambda: datetime.now(tz=UTC))


ALICE, MALLORY, DESK = Caller("alice", "guest"), Caller("mallory", "guest"), Caller("desk", "desk")


async def test_a_page_shows_what_all_three_services_said(mypage_database: Database) -> None:
    """The page has all three states, the confirmation number and the timeline, sorted by time."""
    order = new_id()
    await PostgresPages(mypage_database.autocommit).merge({order: list(STORY)})

    page = await server_of(mypage_database).GetMyPage(pb.GetMyPageRequest(order_id=order), ALICE)

    assert page.order_id == order
    assert page.status == Order.CONFIRMED
    assert page.payment_status == Payment.APPROVED
    assert page.reservation_status == Reservation.CONFIRMED
    assert page.confirmation_no == "C1"
    assert [entry.event for entry in page.timeline] == [fact.event for fact in sorted(STORY, key=lambda f: f.time)]
    assert page.update_time.ToDatetime() == max(fact.time for fact in STORY).replace(tzinfo=None)


async def test_a_page_of_an_order_that_nobody_paid_has_no_other_states(mypage_database: Database) -> None:
    """The other states are STATUS_UNSPECIFIED until there is a payment or a reservation."""
    [order] = await stored(PostgresPages(mypage_database.autocommit), "alice")

    page = await server_of(mypage_database).GetMyPage(pb.GetMyPageRequest(order_id=order), ALICE)

    assert page.status == Order.PAYMENT_PENDING
    assert (page.payment_status, page.reservation_status) == (0, 0)


async def test_somebody_elses_page_is_not_found(mypage_database: Database) -> None:
    """Another guest's page raises MyPageNotFound; the desk sees every page."""
    [order] = await stored(PostgresPages(mypage_database.autocommit), "alice")
    server = server_of(mypage_database)

    with pytest.raises(MyPageNotFound):
        await server.GetMyPage(pb.GetMyPageRequest(order_id=order), MALLORY)
    assert (await server.GetMyPage(pb.GetMyPageRequest(order_id=order), DESK)).order_id == order


async def test_pages_are_listed_newest_first_and_in_parts(mypage_database: Database) -> None:
    """A token returns the next part of the list; the last part has no token."""
    orders = await stored(PostgresPages(mypage_database.autocommit), "alice", "mallory", "alice", "alice")
    server = server_of(mypage_database)

    first = await server.ListMyPages(pb.ListMyPagesRequest(page_size=2), ALICE)
    rest = await server.ListMyPages(pb.ListMyPagesRequest(page_size=2, page_token=first.next_page_token), ALICE)

    assert [page.order_id for page in first.mypages] == [orders[3], orders[2]]
    assert [page.order_id for page in rest.mypages] == [orders[0]]
    assert rest.next_page_token == ""


async def test_an_id_that_is_none_is_refused(mypage_database: Database) -> None:
    """The error names the field by its JSON name."""
    with pytest.raises(Invalid, match="orderId"):
        await server_of(mypage_database).GetMyPage(pb.GetMyPageRequest(order_id="1"), ALICE)
