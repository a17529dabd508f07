"""mypage.v1.MyPageService: gRPC requests and responses."""

from gotohotel.database import Database
from gotohotel.domain import Money
from gotohotel.ids import parse_id
from gotohotel.mypage.v1 import mypage_service_pb2 as pb
from gotohotel.rpc.identity import Caller
from gotohotel.wire import money_to_proto, parse_page, timestamp
from mypage_svc.domain import MyPage
from mypage_svc.store import PostgresMyPages


class MyPageServer:
    """The RPCs of mypage_svc."""

    def __init__(self, database: Database) -> None:
        self._pages = PostgresMyPages(database.autocommit)

    async def GetMyPage(self, request: pb.GetMyPageRequest, caller: Caller) -> pb.MyPage:
        return _page(await self._pages.get(parse_id(request.order_id, "orderId"), owner=caller.owner))

    async def ListMyPages(self, request: pb.ListMyPagesRequest, caller: Caller) -> pb.ListMyPagesResponse:
        page = parse_page(request)
        pages = await self._pages.page(owner=caller.owner, before=page.before, size=page.size)
        token = page.next_token([my_page.order_id for my_page in pages])
        return pb.ListMyPagesResponse(mypages=map(_page, pages), next_page_token=token)


def _page(page: MyPage) -> pb.MyPage:
    amount = page.amount or Money.zero("XXX")
    booking = page.booking
    return pb.MyPage(
        order_id=page.order_id,
        name=booking["name"],
        room_type=booking["room_type"],
        guest_cnt=booking["guest_cnt"],
        check_in=booking["check_in"],
        check_out=booking["check_out"],
        amount=money_to_proto(amount),
        refunded_amount=money_to_proto(page.refunded or Money.zero(amount.currency)),
        status=page.status,
        payment_status=page.payment_status or "STATUS_UNSPECIFIED",
        reservation_status=page.reservation_status or "STATUS_UNSPECIFIED",
        confirmation_no=page.confirmation_no,
        timeline=[
            pb.TimelineEntry(
                event=fact.event,
                time=timestamp(fact.time),
                detail=fact.detail,
                actor_role=fact.actor_role or "ROLE_UNSPECIFIED",
            )
            for fact in page.facts
        ],
        update_time=timestamp(max(fact.time for fact in page.facts)),
    )
