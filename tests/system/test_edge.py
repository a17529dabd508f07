"""Attacks on the gateway's availability, each beside an honest client that must see no error.

The numbers are those that took the first release offline: more sockets than a service accepts calls.
Long because each attack speaks in its own way, mostly over bare sockets.
"""

import json
import resource
import socket
import stat
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import grpc
import httpx
import pytest

from tests.conftest import Client, Hotel, wait_for
from tests.gateways import statistic
from tests.honest import honest

SOCKETS = 1100
SEARCH = "/gotohotel.order.v1.OrderService/SearchRooms"


@pytest.fixture
def many_sockets() -> Iterator[None]:
    """Raises the limit of open files for this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(max(soft, 4096), hard), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("many_sockets")
def test_bodies_that_never_come_hold_no_place_at_a_service(hotel: Hotel) -> None:
    """1,100 sockets without a token announce a body and send none. Each gets 408; nobody else notices."""
    head = b"GET /rooms HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n"
    with honest(hotel), ExitStack() as opened:
        sockets = []
        for _ in range(SOCKETS):
            each = opened.enter_context(
                socket.create_connection(("127.0.0.1", hotel.stack.ports["gateway"]), timeout=20)
            )
            each.sendall(head)
            sockets.append(each)
        # Otherwise the attack did not take place.
        wait_for(lambda: statistic(hotel.stack, "http.public.downstream_rq_active") >= SOCKETS * 0.9)
        last = sockets[-1].recv(1000)

    assert b" 408 " in last
    assert b"REQUEST_TIMEOUT" in last


@pytest.mark.usefixtures("many_sockets")
@pytest.mark.parametrize("ends", [False, True], ids=["no message yet", "no message at all"])
def test_grpc_calls_without_a_message_hold_no_place_at_a_service(hotel: Hotel, ends: bool) -> None:
    """The gRPC server would wait for the message until the deadline, or never answer."""
    released = threading.Event()

    def nothing() -> Iterator[bytes]:
        if not ends:
            released.wait()
        yield from ()

    with honest(hotel), ExitStack() as opened:
        answers: list[Any] = []
        for number in range(12):
            options = [("grpc.use_local_subchannel_pool", 1), ("test.number", number)]  # each its own connection
            channel = opened.enter_context(grpc.insecure_channel(f"127.0.0.1:{hotel.stack.ports['gateway']}", options))
            begin: Any = channel.stream_unary(SEARCH)
            answers += [begin.future(nothing(), timeout=20) for _ in range(50)]
        codes = {answer.exception().code() for answer in answers}
        released.set()

    expected = grpc.StatusCode.INVALID_ARGUMENT if ends else grpc.StatusCode.DEADLINE_EXCEEDED
    assert codes == {expected}


@pytest.mark.parametrize("frame", [b"\0\0\0", b"\0\0\0\0\x09", b"\0\0\0\0\0\0\0\0\0\0", b"\0\0\0\0\0xx"])
def test_a_grpc_call_must_have_one_whole_message(hotel: Hotel, frame: bytes) -> None:
    """A message that is cut off, or followed by another, is refused at once."""
    with httpx.Client(base_url=hotel.stack.gateway_url, http1=False, http2=True) as client:
        answer = client.post(SEARCH, content=frame, headers={"content-type": "application/grpc", "te": "trailers"})

    assert answer.headers["grpc-status"] == "3"


def test_one_guests_burst_is_hers_alone(hotel: Hotel) -> None:
    """Beyond her rate she gets 429 with the time to wait; another guest notices nothing."""
    greedy = hotel.caller()
    with honest(hotel), ThreadPoolExecutor(64) as pool:
        clients = [Client(hotel.stack, subject=greedy.subject, role="guest") for _ in range(64)]
        answers = list(pool.map(lambda number: clients[number % 64].request("GET", "/orders"), range(1500)))
        for client in clients:
            client.close()

    statuses = Counter(answer.status_code for answer in answers)
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert set(statuses) == {200, 429}
    assert statuses[429] > 500
    assert refused.json()["details"][1]["retryDelay"] == "1s"


def test_calls_without_a_token_have_places_of_their_own(hotel: Hotel) -> None:
    """A flood of searches may be turned away; a guest who is logged in books all the same."""
    guest, booking = hotel.caller(), hotel.booking(roomType=hotel.room_type(100))
    url = f"{hotel.stack.gateway_url}/rooms"
    stop = threading.Event()

    def flood() -> Counter[int]:
        seen: Counter[int] = Counter()
        with httpx.Client(timeout=20) as client:
            while not stop.is_set():
                seen[client.get(url).status_code] += 1
        return seen

    with ThreadPoolExecutor(100) as pool:
        floods = [pool.submit(flood) for _ in range(100)]
        booked = [guest.request("POST", "/orders", json=booking).status_code for _ in range(10)]
        stop.set()
        seen = sum((each.result() for each in floods), Counter())

    assert booked == [200] * 10
    assert seen[200] > 100
    assert set(seen) <= {200, 429, 503}


def test_the_admin_interface_has_no_port(hotel: Hotel) -> None:
    """A web page can send a POST to a port of the laptop, but not to a socket that only its user may open."""
    mode = hotel.stack.admin_socket.stat().st_mode

    assert stat.S_ISSOCK(mode)
    assert mode & 0o777 == 0o600


@pytest.mark.parametrize("path", ["/rooms%2f", "/rooms%5c", "/rooms#part"])
def test_what_envoy_refuses_before_it_looks_for_a_route_is_complete(hotel: Hotel, path: str) -> None:
    """The answer is as of any other refusal: JSON with a message, for no cache, and without headers of ours."""
    port = hotel.stack.ports["gateway"]
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection, connection.makefile("rb") as received:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: hotel\r\n\r\n".encode())
        head, _, body = received.read().partition(b"\r\n\r\n")

    assert head.split()[1] == b"400"
    assert b"\r\ncache-control: no-store" in head
    assert b"x-gotohotel" not in head
    assert json.loads(body)["message"]


@pytest.mark.parametrize("size", [3_000, 9_000, 14_000])
def test_unknown_headers_and_cookies_end_at_the_gateway(guest: Client, size: int) -> None:
    """A service accepts 8 KiB of headers; what it does not need does not reach it."""
    for name in ("cookie", "x-anything", "user-agent"):
        answers = [guest.request("GET", "/orders", headers={name: "x" * size}) for _ in range(3)]
        assert {answer.status_code for answer in answers} == {200}


@pytest.mark.parametrize(
    ("where", "size"),
    [
        *((where, size) for where in ("accept-language", "the query") for size in (5_000, 9_000, 14_000, 30_000)),
        ("cookie", 30_000),  # more than the gateway reads at all
    ],
)
def test_headers_that_are_too_large_get_one_clear_answer(guest: Client, where: str, size: int) -> None:
    """The limits are the same along the way, and no internal header appears in the answer."""
    in_query = where == "the query"

    answer = guest.request(
        "GET", "/orders?pageToken=" + "x" * size * in_query, headers={} if in_query else {where: "x" * size}
    )

    assert answer.status_code == 431
    assert answer.json()["details"][0]["reason"] == "HEADERS_TOO_LARGE"
    assert "x-" not in answer.text


@pytest.mark.usefixtures("many_sockets")
def test_large_answers_that_are_not_taken_hold_little_memory(hotel: Hotel) -> None:
    """700 requests for the largest file, whose answers nobody reads: a few are under way, the others get 503."""
    settings = b"\0\0\x06\x04\0\0\0\0\0" + struct.pack(">HI", 4, 4)  # SETTINGS_INITIAL_WINDOW_SIZE = 4
    path = b"/docs/swagger-ui-bundle.js"
    fields = b"\x82\x86\x04" + bytes([len(path)]) + path + b"\x01\x09localhost"  # GET, http, :path, :authority
    with honest(hotel), ExitStack() as opened:
        for _ in range(7):
            raw = opened.enter_context(socket.create_connection(("127.0.0.1", hotel.stack.ports["gateway"])))
            raw.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + settings)
            for number in range(100):
                head = len(fields).to_bytes(3, "big") + b"\x01\x05" + (2 * number + 1).to_bytes(4, "big")
                raw.sendall(head + fields)
        time.sleep(3)
        held = statistic(hotel.stack, "server.memory_allocated")
        overflowed = statistic(hotel.stack, "cluster.pages.upstream_rq_pending_overflow") + statistic(
            hotel.stack, "cluster.pages.upstream_cx_overflow"
        )

    assert held < 300 * 1024**2
    assert overflowed > 0


def test_who_asks_for_the_health_takes_no_place_from_others(hotel: Hotel) -> None:
    """A flood of /healthz asks order_svc once a second, and every answer says SERVING."""
    before = statistic(hotel.stack, "cluster.order_svc.upstream_rq_total")
    with honest(hotel), httpx.Client(base_url=hotel.stack.gateway_url) as client:
        began = time.monotonic()
        answers = Counter(client.get("/healthz").text for _ in range(1000))
        seconds = time.monotonic() - began
        asked = statistic(hotel.stack, "cluster.order_svc.upstream_rq_total") - before

    assert set(answers) == {'{"status":"SERVING"}'}
    assert asked < 300 + 40 * seconds  # the honest guest's, and one a second
