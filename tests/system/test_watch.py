"""Watching a page: server-sent events and gRPC through the gateway, from the order to its last state."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import grpc
import httpx
import pytest

from gotohotel.mypage.v1 import mypage_service_pb2 as pb
from gotohotel.mypage.v1.mypage_service_pb2_grpc import MyPageServiceStub
from ops import tokens
from tests.conftest import GOOD_CARD, WAIT_SECONDS, Client, Hotel, freeze, wait_for
from tests.honest import honest
from tests.watching import watching


def test_a_booking_is_followed_from_order_to_confirmation(hotel: Hotel, guest: Client) -> None:
    """The page comes at once, and again at every change; no page comes twice."""
    order = hotel.order(guest, card=None)
    with watching(hotel, order["id"], guest.token) as watcher:
        first = watcher.next()
        assert watcher.head is not None
        assert watcher.head.headers["content-type"] == "text/event-stream"
        assert watcher.head.headers["cache-control"] == "no-store"
        assert first[2]["status"] == "PAYMENT_PENDING"

        guest.post(f"/orders/{order['id']}:pay", {"cardNo": GOOD_CARD})
        received = watcher.until(reservationStatus="RECEIVED")
        hotel.desk.post(f"/reservations/{order['id']}:confirm")
        confirmed = watcher.until(status="CONFIRMED")

    assert len({first[0], received[0], confirmed[0]}) == 3
    assert confirmed[2] == guest.get(f"/mypages/{order['id']}")
    assert confirmed[0] == confirmed[2]["etag"]
    assert confirmed[2]["asOfTime"] == confirmed[2]["timeline"][-1]["time"]


def test_a_client_that_connects_again_loses_nothing_and_gets_nothing_twice(hotel: Hotel, guest: Client) -> None:
    """EventSource sends the id of the last event by itself; the page that it has is not sent again."""
    order = hotel.order(guest, card=None)
    with watching(hotel, order["id"], guest.token) as watcher:
        last, _, _ = watcher.next()
    with watching(hotel, order["id"], guest.token, headers={"Last-Event-ID": last}) as watcher:
        wait_for(lambda: watcher.comments > 0)
        assert not watcher.has_news()
        guest.post(f"/orders/{order['id']}:pay", {"cardNo": GOOD_CARD})
        last, _, page = watcher.until(status="PAID", reservationStatus="RECEIVED")
    hotel.desk.post(f"/reservations/{order['id']}:confirm")
    with watching(hotel, order["id"], guest.token, query=f"?etag={last}") as watcher:
        assert watcher.until(status="CONFIRMED")[0] != last
    assert page["status"] == "PAID"


def test_a_page_may_be_watched_before_its_first_event_has_arrived(hotel: Hotel, guest: Client) -> None:
    """The call waits for it; somebody else's page, and one that never comes, are not found."""
    order = guest.post("/orders", hotel.booking(**hotel.stay()))
    with watching(hotel, order["id"], guest.token) as watcher:
        assert watcher.next()[2]["orderId"] == order["id"]
    with watching(hotel, order["id"], hotel.caller().token) as watcher:
        assert watcher.head is not None
        assert watcher.head.status_code == 404
        assert watcher.head.json()["details"][0]["reason"] == "MY_PAGE_NOT_FOUND"
    with watching(hotel, order["id"], hotel.desk.token) as watcher:
        assert watcher.next()[2]["orderId"] == order["id"]


def test_a_browser_gives_the_token_in_the_query_of_a_watch_only(hotel: Hotel, guest: Client) -> None:
    """EventSource can't set headers. No other path takes a token there, and a wrong one is refused."""
    order = hotel.order(guest, card=None)
    with watching(hotel, order["id"], query=f"?access_token={guest.token}") as watcher:
        assert watcher.next()[2]["orderId"] == order["id"]
    with watching(hotel, order["id"], query=f"?access_token={guest.token[:-9]}") as watcher:
        assert watcher.head is not None
        assert watcher.head.status_code == 401
    page = httpx.get(f"{hotel.stack.gateway_url}/mypages/{order['id']}?access_token={guest.token}")
    assert page.status_code == 401
    logs = [path.read_text() for path in (hotel.stack.home / "log").iterdir()]
    assert logs
    assert all(guest.token not in log for log in logs)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("x:watch", {400}),
        (f"{'0' * 2000}:watch", {400}),
        ("{order}:watch?etag=%00", {400}),
        ("{order}:watch?etag=" + "f" * 3000, {400}),
        ("{order}:watch?etag=1&etag=2", {200, 400}),
        ("{order}:watch?unknown=1", {400}),
        ("{order}:watch?orderId=x", {400}),
        ("{order}:watch?access_token=&access_token=%00", {200}),  # the header counts
        ("{order}:watch?access_token", {200, 400}),
        ("{order}:watch/", {404}),
        ("{order}:watch:watch", {404}),
        ("{order}%3Awatch", {404, 400}),
    ],
)
def test_hostile_input_to_a_watch(hotel: Hotel, guest: Client, path: str, expected: set[int]) -> None:
    """Refused, or a watch; never a failure of the server."""
    order = hotel.order(guest, card=None)
    url = f"{hotel.stack.gateway_url}/mypages/{path.format(order=order['id'])}"
    headers = {"Authorization": f"Bearer {guest.token}", "Last-Event-ID": "\"x'"}
    with httpx.stream("GET", url, headers=headers, timeout=60) as answer:
        assert answer.status_code in expected


def test_a_watch_has_no_head(hotel: Hotel, guest: Client) -> None:
    """It has no end, so there is no length that could be told."""
    order = hotel.order(guest, card=None)
    assert guest.request("HEAD", f"/mypages/{order['id']}:watch").status_code == 405


def test_a_watch_ends_with_the_token(hotel: Hotel, guest: Client) -> None:
    """The stream ends when the token expires, and is refused afterwards."""
    order = hotel.order(guest, card=None)
    token = tokens.mint(hotel.stack.home, subject=guest.subject, role="guest", seconds=3)
    with watching(hotel, order["id"], token) as watcher:
        watcher.next()
        assert watcher.rest() == []
    wait_for(lambda: _status(hotel, order["id"], token) == 401)


def _status(hotel: Hotel, order_id: str, token: str) -> int:
    with watching(hotel, order_id, token) as watcher:
        return watcher.head.status_code if watcher.head else 0


def test_grpc_clients_watch_too(hotel: Hotel, guest: Client) -> None:
    """The stream has pages; the sentences are in the caller's language, Korean by default."""
    order = hotel.order(guest, card=None)
    with _stub(hotel) as stub:
        request = pb.WatchMyPageRequest(order_id=order["id"])
        in_english = (*_bearer(guest), ("accept-language", "de, en;q=0.5"))
        english = stub.WatchMyPage(request, metadata=in_english, timeout=WAIT_SECONDS)
        korean = stub.WatchMyPage(request, metadata=_bearer(guest), timeout=WAIT_SECONDS)
        assert next(english).timeline[0].text == "We have received your booking."
        assert next(korean).timeline[0].text == "예약이 접수되었습니다."
        guest.post(f"/orders/{order['id']}:cancel")
        # Events come in any order, and a page may show several: the watch ends with an error if none shows this one.
        assert any("OrderCanceled" in [entry.event for entry in page.timeline] for page in english)
        english.cancel()
        korean.cancel()


@contextmanager
def _stub(hotel: Hotel) -> Iterator[MyPageServiceStub]:
    with grpc.insecure_channel(f"127.0.0.1:{hotel.stack.ports['gateway']}") as channel:
        yield MyPageServiceStub(channel)


def _bearer(caller: Client) -> tuple[tuple[str, str | bytes], ...]:
    return (("authorization", f"Bearer {caller.token}"),)


def test_twenty_watches_of_one_caller_are_the_limit(hotel: Hotel, guest: Client) -> None:
    """The next one is refused with the time to wait; calls, and other guests' watches, are not affected."""
    order = hotel.order(guest, card=None)
    other = hotel.caller()
    others = hotel.order(other, card=None)
    with honest(hotel), _stub(hotel) as stub:
        open_ones = [
            stub.WatchMyPage(pb.WatchMyPageRequest(order_id=order["id"]), metadata=_bearer(guest)) for _ in range(20)
        ]
        for each in open_ones:
            next(each)
        with watching(hotel, order["id"], guest.token) as refused:
            assert refused.head is not None
            assert refused.head.status_code == 429
            assert refused.head.headers["retry-after"] == "1"
        assert guest.get(f"/mypages/{order['id']}")["orderId"] == order["id"]
        with watching(hotel, others["id"], other.token) as watcher:
            watcher.next()
        for each in open_ones:
            each.cancel()
    wait_for(lambda: _status(hotel, order["id"], guest.token) == 200)


def test_a_watch_survives_restarts_and_kills_of_the_service(hotel: Hotel, guest: Client) -> None:
    """A stop ends it with UNAVAILABLE; a kill breaks it. A client that connects again ends with the true page."""
    order = hotel.order(guest, card=None)
    with _stub(hotel) as stub:
        stream = stub.WatchMyPage(pb.WatchMyPageRequest(order_id=order["id"]), metadata=_bearer(guest))
        next(stream)
        stopping = threading.Thread(target=hotel.stack.stop, args=["mypage_svc"])
        stopping.start()
        with pytest.raises(grpc.RpcError) as ended:
            next(stream)
        assert ended.value.code() == grpc.StatusCode.UNAVAILABLE
        stopping.join()
    hotel.stack.start("mypage_svc")

    done = threading.Event()

    def follow() -> None:
        last = ""
        while not done.is_set():
            with suppress(httpx.HTTPError), watching(hotel, order["id"], guest.token, query=f"?etag={last}") as watcher:
                if watcher.head is not None and watcher.head.status_code == httpx.codes.OK:
                    for identifier, _, page in iter(watcher.next_or_end, None):
                        last = identifier or last
                        seen.append(page)
            time.sleep(0.1)

    seen: list[Any] = []
    following = threading.Thread(target=follow, daemon=True)
    following.start()
    wait_for(lambda: len(seen) == 1)
    [pid] = [pid for name, _, pid, _ in hotel.stack.status() if name == "mypage_svc"]
    os.kill(pid, signal.SIGKILL)
    guest.post(f"/orders/{order['id']}:pay", {"cardNo": GOOD_CARD})
    wait_for(lambda: seen[-1]["reservationStatus"] == "RECEIVED")
    [pid] = [pid for name, _, pid, _ in hotel.stack.status() if name == "envoy"]
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: _confirmed(hotel, order["id"]))
    wait_for(lambda: seen[-1]["status"] == "CONFIRMED")
    done.set()

    etags = [page["etag"] for page in seen]
    assert len(etags) == len(set(etags))
    assert seen[-1] == guest.get(f"/mypages/{order['id']}")
    # The next test finds everything as before: order_svc has to connect to the gateway again.
    wait_for(lambda: hotel.order(hotel.caller())["status"] == "PAID")


@pytest.mark.parametrize("has_the_calls", [False, True])
def test_a_restart_of_the_service_refuses_no_watch(hotel: Hotel, guest: Client, has_the_calls: bool) -> None:
    """A browser gives up for good when it is refused: the gateway tries again until the service is back, for all, also
    when the service ends with calls that it has not answered yet.
    """
    order = hotel.order(guest, card=None)
    hotel.page_with(order["id"], status="PAYMENT_PENDING")
    with _stub(hotel) as stub:
        [pid] = [pid for name, _, pid, _ in hotel.stack.status() if name == "mypage_svc"]
        if has_the_calls:
            freeze(pid)
        else:
            os.kill(pid, signal.SIGKILL)
        request = pb.WatchMyPageRequest(order_id=order["id"])
        streams = [stub.WatchMyPage(request, metadata=_bearer(guest)) for _ in range(20)]
        if has_the_calls:
            time.sleep(0.5)  # the gateway has passed them on
            os.kill(pid, signal.SIGKILL)
        assert {next(stream).order_id for stream in streams} == {order["id"]}
        for stream in streams:
            stream.cancel()


def _confirmed(hotel: Hotel, order_id: str) -> bool:
    with suppress(httpx.HTTPError):
        return hotel.desk.request("POST", f"/reservations/{order_id}:confirm").is_success
    return False
