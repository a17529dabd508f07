"""Attacks on the gateway's availability, each beside an honest client that must see no error.

The numbers are those that took the first release offline: more sockets than a service accepts calls.
Long because each attack speaks in its own way, mostly over bare sockets.
"""

import json
import os
import resource
import signal
import socket
import stat
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from gotohotel.order.v1.order_service_pb2 import ListOrdersRequest, SearchRoomsRequest
from gotohotel.order.v1.order_service_pb2_grpc import OrderServiceStub
from ops import gateway
from ops.stack import Stack
from tests.conftest import Client, Hotel, freeze, wait_for
from tests.gateways import Change, configure, running_envoy, statistic
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


def test_refusals_for_want_of_a_place_fill_no_log(hotel: Hotel, tmp_path: Path) -> None:
    """One in a hundred is logged, of gRPC calls too; answers of services are all logged."""
    twin = Stack.on_free_ports(tmp_path)
    full = rf'(PLACES = \\"order_svc\\", ){gateway.MAX_CALLS}\b'
    configure(twin, hotel.stack, Change(full, r"\g<1>0"))
    log, url = tmp_path / "access.log", f"127.0.0.1:{twin.ports['gateway']}"
    statuses, codes, searches = Counter[int](), Counter[grpc.StatusCode](), Counter[int]()
    with (
        log.open("w") as access_log,
        running_envoy(twin, access_log),
        httpx.Client(base_url=twin.gateway_url) as client,
        grpc.insecure_channel(url) as channel,
    ):
        list_orders = OrderServiceStub(channel).ListOrders
        for _ in range(5):
            token = f"Bearer {hotel.caller().token}"
            for _ in range(40):
                statuses[client.get("/orders", headers={"Authorization": token}).status_code] += 1
                with pytest.raises(grpc.RpcError) as refusal:
                    list_orders(ListOrdersRequest(), metadata=(("authorization", token),))
                codes[refusal.value.code()] += 1
            searches[client.get("/rooms").status_code] += 1
        overflowed = statistic(twin, "http.public.fault.aborts_injected")
    lines = Counter(json.loads(line)["flags"] for line in log.read_text().splitlines())

    assert statuses == {503: 200}
    assert codes == {grpc.StatusCode.UNAVAILABLE: 200}
    assert searches == {200: 5}
    assert overflowed == 400
    assert lines["FI"] < 40
    assert lines["-"] == 5


def test_the_admin_interface_has_no_port(hotel: Hotel) -> None:
    """A web page can send a POST to a port of the laptop, but not to a socket that only its user may open."""
    mode = hotel.stack.admin_socket.stat().st_mode

    assert stat.S_ISSOCK(mode)
    assert mode & 0o777 == 0o600


def test_a_flood_of_refusals_fills_no_log(hotel: Hotel) -> None:
    """Refusals are counted; one in a hundred is logged. Answers of services are all logged."""
    log = hotel.stack.home / "log" / "access.log"
    before, counted = log.read_text().count("\n"), statistic(hotel.stack, "http.public.jwt_authn.denied")

    with httpx.Client(base_url=hotel.stack.gateway_url) as client:
        statuses = {client.get("/orders").status_code for _ in range(400)}
        for _ in range(20):
            client.get("/rooms")

    assert statuses == {401}
    assert statistic(hotel.stack, "http.public.jwt_authn.denied") >= counted + 400
    wait_for(lambda: log.read_text().count("\n") >= before + 20)
    lines = [json.loads(line) for line in log.read_text().splitlines()[before:]]
    assert len([line for line in lines if line["status"] == 401]) < 40


def test_a_flood_of_refused_grpc_calls_fills_no_log(hotel: Hotel) -> None:
    """Their HTTP status is 200. Without a token, at a path that does not exist, too many, or with a message that never
    comes.
    """
    log = hotel.stack.home / "log" / "access.log"
    before = len(log.read_text().splitlines())
    token = (("authorization", f"Bearer {hotel.caller().token}"),)
    codes = Counter[grpc.StatusCode]()

    with grpc.insecure_channel(f"127.0.0.1:{hotel.stack.ports['gateway']}") as channel:
        list_orders = OrderServiceStub(channel).ListOrders
        nothing: Any = channel.unary_unary("/gotohotel.no.Such/Call")
        no_message: Any = channel.stream_unary("/gotohotel.order.v1.OrderService/ListOrders")
        released = threading.Event()
        search: Any = channel.stream_unary(SEARCH)
        late = [search.future(iter(released.wait, True)) for _ in range(90)]
        searches = [OrderServiceStub(channel).SearchRooms(SearchRoomsRequest()) for _ in range(20)]
        for _ in range(200):
            for refused in (
                lambda: list_orders(ListOrdersRequest()),
                lambda: nothing(b"", metadata=token),
                lambda: no_message(iter(()), metadata=token),
            ):
                with pytest.raises(grpc.RpcError) as refusal:
                    refused()
                codes[refusal.value.code()] += 1
        assert {call.exception().code() for call in late} == {grpc.StatusCode.DEADLINE_EXCEEDED}
        released.set()

    assert codes[grpc.StatusCode.UNAUTHENTICATED] == 200
    refusals = (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED)
    assert all(codes[code] > 40 for code in refusals)
    wait_for(lambda: log.read_text().count("\n") >= before + 20)
    lines = [json.loads(line) for line in log.read_text().splitlines()[before:]]
    assert len([line for line in lines if line["details"] == "via_upstream"]) >= len(searches)
    assert len([line for line in lines if line["details"] != "via_upstream"]) < 40


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


@pytest.mark.parametrize(
    ("request_line", "header"),
    [
        (b"GET /4111111111111111", b"Connection: upgrade\r\nUpgrade: connect-udp"),
        (b"CONNECT 4111111111111111:1", b"Accept: */*"),
    ],
    ids=["connect-udp", "CONNECT"],
)
def test_the_gateways_own_log_does_not_grow_with_requests(hotel: Hotel, request_line: bytes, header: bytes) -> None:
    """Neither with what was typed there, nor with a line for each."""
    log = hotel.stack.home / "log" / "envoy.log"
    before = log.read_text()
    for _ in range(20):
        with socket.create_connection(("127.0.0.1", hotel.stack.ports["gateway"]), timeout=10) as connection:
            connection.sendall(b"%s HTTP/1.1\r\nHost: hotel\r\n%s\r\n\r\n" % (request_line, header))
            assert connection.recv(1000).split()[1] in {b"400", b"404"}
    httpx.get(f"{hotel.stack.gateway_url}/rooms").raise_for_status()

    assert log.read_text() == before


@pytest.mark.parametrize(
    ("request_line", "header", "status"),
    [
        (b"POST /rooms%2f", b"Content-Type: application/grpc", b"200"),
        (b"GET /rooms%2f", b"Accept: */*", b"400"),
        (b"GET /rooms", b"Transfer-Encoding: gzip", b"501"),
    ],
    ids=["gRPC at a bad path", "JSON at a bad path", "unknown encoding"],
)
def test_a_flood_of_what_envoy_refuses_first_fills_no_log(
    hotel: Hotel, request_line: bytes, header: bytes, status: bytes
) -> None:
    """These calls are refused before any limit or filter sees them."""
    log = hotel.stack.home / "log" / "access.log"
    before = len(log.read_text().splitlines())
    for _ in range(400):
        with socket.create_connection(("127.0.0.1", hotel.stack.ports["gateway"]), timeout=10) as connection:
            connection.sendall(b"%s HTTP/1.1\r\nHost: hotel\r\n%s\r\n\r\n" % (request_line, header))
            assert connection.recv(1000).split()[1] == status
    for _ in range(20):
        httpx.get(f"{hotel.stack.gateway_url}/rooms").raise_for_status()

    wait_for(lambda: log.read_text().count("\n") >= before + 20)
    assert log.read_text().count("\n") < before + 60


def test_callers_who_leave_before_the_answer_are_logged(hotel: Hotel) -> None:
    """Their calls have no status, and only these lines show that a service was too slow for them."""
    log = hotel.stack.home / "log" / "access.log"
    before = len(log.read_text().splitlines())
    [pid] = [pid for name, _, pid, _ in hotel.stack.status() if name == "order_svc"]
    headers = {"Authorization": f"Bearer {hotel.caller().token}"}

    freeze(pid)
    try:
        with pytest.raises(httpx.ReadTimeout):
            httpx.get(f"{hotel.stack.gateway_url}/orders", headers=headers, timeout=0.5)
    finally:
        os.kill(pid, signal.SIGCONT)

    wait_for(lambda: '"flags":"DC"' in "".join(log.read_text().splitlines()[before:]))


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
