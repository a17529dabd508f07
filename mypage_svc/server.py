"""mypage.v1.MyPageService: gRPC requests and responses."""

from collections.abc import AsyncGenerator, Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from google.api.httpbody_pb2 import HttpBody
from google.protobuf.json_format import MessageToJson

from gotohotel import language
from gotohotel.domain import Money
from gotohotel.ids import parse_id
from gotohotel.language import Texts
from gotohotel.mypage.v1 import mypage_service_pb2 as pb
from gotohotel.rpc.identity import Caller
from gotohotel.texts import parse_text
from gotohotel.wire import money_to_proto, parse_page, timestamp
from mypage_svc.domain import FINAL, Fact, MyPage, MyPageNotFound, Pages
from mypage_svc.watches import Watch, Watches

APPEARS_WITHIN_SECONDS = 3.0  # the first event of an order may still be on its way
HEARTBEAT_SECONDS = 15.0
WATCHED_WHEN_FINAL = timedelta(minutes=1)
EVENT_STREAM = "text/event-stream"
JSON_OPTIONS: Any = {"indent": None, "ensure_ascii": False, "always_print_fields_with_no_presence": True}
TEXTS = Texts(Path(__file__).parent / "locale")


class MyPageServer:
    """The RPCs of mypage_svc. `clock` is the database's time."""

    def __init__(self, pages: Pages, watches: Watches, *, clock: Callable[[], datetime]) -> None:
        self._pages = pages
        self._watches = watches
        self._clock = clock

    async def GetMyPage(self, request: pb.GetMyPageRequest, caller: Caller) -> pb.MyPage:
        return _page(await self._pages.get(parse_id(request.order_id, "orderId"), owner=caller.owner))

    async def ListMyPages(self, request: pb.ListMyPagesRequest, caller: Caller) -> pb.ListMyPagesResponse:
        page = parse_page(request)
        pages = await self._pages.page(owner=caller.owner, before=page.before, size=page.size)
        token = page.next_token([my_page.order_id for my_page in pages])
        return pb.ListMyPagesResponse(mypages=map(_page, pages), next_page_token=token)

    async def WatchMyPage(self, request: pb.WatchMyPageRequest, caller: Caller) -> AsyncGenerator[pb.MyPage, None]:
        async for page in self._watch(request, caller):
            if page is not None:
                yield _page(page)

    async def StreamMyPage(self, request: pb.StreamMyPageRequest, caller: Caller) -> AsyncGenerator[HttpBody, None]:
        begin = "retry: 3000\n"
        async for page in self._watch(request, caller):
            if page is None:
                yield _event_stream(":\n\n")
                continue
            data = MessageToJson(_page(page), **JSON_OPTIONS)
            yield _event_stream(f"{begin}id: {page.etag}\ndata: {data}\n\n")
            begin = ""
        yield _event_stream("event: end\ndata: {}\n\n")

    async def _watch(
        self, request: pb.WatchMyPageRequest | pb.StreamMyPageRequest, caller: Caller
    ) -> AsyncGenerator[MyPage | None, None]:
        """The page, and again whenever it changes; None if it has not changed for HEARTBEAT_SECONDS."""
        order_id, etag = parse_id(request.order_id, "orderId"), parse_text(request.etag, "etag", limit=64)
        with self._watches.open(order_id) as watch:  # before the page is read, so that no change is missed
            page = await self._appeared(watch, order_id, caller.owner)
            while True:
                yield page if page.etag != etag else None
                etag, seconds = page.etag, HEARTBEAT_SECONDS
                if page.status in FINAL:
                    left = (page.as_of + WATCHED_WHEN_FINAL - self._clock()).total_seconds()
                    if left <= 0:
                        return
                    seconds = min(seconds, left)
                newer = await watch.next(seconds=seconds)
                # A read that began earlier may end later: a page never goes back.
                page = newer if newer is not None and len(newer.facts) >= len(page.facts) else page

    async def _appeared(self, watch: Watch, order_id: str, owner: str | None) -> MyPage:
        """The page, which may appear while the caller waits."""
        try:
            return await self._pages.get(order_id, owner=owner)
        except MyPageNotFound:
            await watch.next(seconds=APPEARS_WITHIN_SECONDS)
            return await self._pages.get(order_id, owner=owner)


def _event_stream(text: str) -> HttpBody:
    return HttpBody(content_type=EVENT_STREAM, data=text.encode())


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
        timeline=map(_entry, page.facts),
        notifications=[
            pb.Notification(template=each.template, status=each.status, time=timestamp(each.time))
            for each in page.notifications
        ],
        update_time=timestamp(page.updated_at),
        as_of_time=timestamp(page.as_of),
        etag=page.etag,
    )


def _entry(fact: Fact) -> pb.TimelineEntry:
    amount = f"{fact.amount.amount:,f} {fact.amount.currency}" if fact.amount else ""
    return pb.TimelineEntry(
        event=fact.event,
        time=timestamp(fact.time),
        detail=fact.detail,
        actor_role=fact.actor_role or "ROLE_UNSPECIFIED",
        text=TEXTS.get(fact.event, language.current(), detail=fact.detail, amount=amount),
    )
