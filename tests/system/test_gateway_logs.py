"""What the gateway writes into its logs: a gateway of the test's own, whose logs are complete once it has ended."""

import json
import os
import signal
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from gotohotel.order.v1.order_service_pb2 import ListOrdersRequest, SearchRoomsRequest
from gotohotel.order.v1.order_service_pb2_grpc import OrderServiceStub
from ops import gateway
from ops.stack import Stack
from tests.conftest import Hotel, freeze
from tests.gateways import Change, configure, running_envoy, statistic

SEARCH = "/gotohotel.order.v1.OrderService/SearchRooms"


@dataclass
class Logs:
    """Of a gateway that has ended."""

    folder: Path

    @property
    def calls(self) -> list[dict[str, Any]]:
        """The lines of the access log."""
        return [json.loads(line) for line in (self.folder / "access.log").read_text().splitlines()]

    @property
    def own(self) -> str:
        """Envoy's own log."""
        return (self.folder / "envoy.log").read_text()

    def refusals(self) -> list[dict[str, Any]]:
        """The calls that no service has answered."""
        return [line for line in self.calls if line["details"] != "via_upstream"]

    def answered(self) -> int:
        """How many calls a service has answered."""
        return len(self.calls) - len(self.refusals())


@contextmanager
def logging_gateway(hotel: Hotel, logs: Logs, *changes: Change) -> Iterator[Stack]:
    """Another gateway, with a changed configuration."""
    twin = Stack.on_free_ports(logs.folder)
    configure(twin, hotel.stack, *changes)
    with (
        (logs.folder / "access.log").open("w") as access_log,
        (logs.folder / "envoy.log").open("w") as own,
        running_envoy(twin, access_log, own),
    ):
        yield twin


@pytest.fixture
def logs(tmp_path: Path) -> Logs:
    """To be read when the gateway has ended."""
    return Logs(tmp_path)


def test_refusals_for_want_of_a_place_fill_no_log(hotel: Hotel, logs: Logs) -> None:
    """One in a hundred is logged, of gRPC calls too; answers of services are all logged."""
    full = Change(rf'(PLACES = \\"order_svc\\", ){gateway.MAX_CALLS}\b', r"\g<1>0")
    statuses, codes, searches = Counter[int](), Counter[grpc.StatusCode](), Counter[int]()
    with (
        logging_gateway(hotel, logs, full) as twin,
        httpx.Client(base_url=twin.gateway_url) as client,
        grpc.insecure_channel(f"127.0.0.1:{twin.ports['gateway']}") as channel,
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

    assert statuses == {503: 200}
    assert codes == {grpc.StatusCode.UNAVAILABLE: 200}
    assert searches == {200: 5}
    assert overflowed == 400
    assert len(logs.refusals()) < 40
    assert logs.answered() == 5


def test_a_flood_of_refusals_fills_no_log(hotel: Hotel, logs: Logs) -> None:
    """Refusals are counted; one in a hundred is logged. Answers of services are all logged."""
    with logging_gateway(hotel, logs) as twin, httpx.Client(base_url=twin.gateway_url) as client:
        statuses = {client.get("/orders").status_code for _ in range(400)}
        for _ in range(20):
            client.get("/rooms").raise_for_status()
        assert statistic(twin, "http.public.jwt_authn.denied") == 400

    assert statuses == {401}
    assert len(logs.refusals()) < 40
    assert logs.answered() == 20


def test_a_flood_of_refused_grpc_calls_fills_no_log(hotel: Hotel, logs: Logs) -> None:
    """Their HTTP status is 200. Without a token, at a path that does not exist, too many, or with a message that never
    comes.
    """
    token = (("authorization", f"Bearer {hotel.caller().token}"),)
    codes = Counter[grpc.StatusCode]()
    released = threading.Event()
    with (
        logging_gateway(hotel, logs) as twin,
        grpc.insecure_channel(f"127.0.0.1:{twin.ports['gateway']}") as channel,
    ):
        list_orders = OrderServiceStub(channel).ListOrders
        nothing: Any = channel.unary_unary("/gotohotel.no.Such/Call")
        no_message: Any = channel.stream_unary("/gotohotel.order.v1.OrderService/ListOrders")
        search: Any = channel.stream_unary(SEARCH)
        late = [search.future(iter(released.wait, True)) for _ in range(90)]
        try:
            for _ in range(20):
                OrderServiceStub(channel).SearchRooms(SearchRoomsRequest())
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
        finally:
            released.set()

    assert codes[grpc.StatusCode.UNAUTHENTICATED] == 200
    refusals = (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED)
    assert all(codes[code] > 40 for code in refusals)
    assert len(logs.refusals()) < 40
    assert logs.answered() == 20


@pytest.mark.parametrize(
    ("request_line", "header", "status"),
    [
        (b"POST /rooms%2f", b"Content-Type: application/grpc", b"200"),
        (b"GET /rooms%2f", b"Accept: */*", b"400"),
        (b"GET /rooms", b"Transfer-Encoding: gzip", b"501"),
        (b"GET /4111111111111111", b"Connection: upgrade\r\nUpgrade: connect-udp", b"404"),
        (b"CONNECT 4111111111111111:1", b"Accept: */*", b"400"),
    ],
    ids=["gRPC at a bad path", "JSON at a bad path", "unknown encoding", "connect-udp", "CONNECT"],
)
def test_a_flood_of_unusual_requests_fills_no_log(
    hotel: Hotel, logs: Logs, request_line: bytes, header: bytes, status: bytes
) -> None:
    """Neither the access log, although no limit sees some of these calls, nor Envoy's own; and the path is in none."""
    with logging_gateway(hotel, logs) as twin:
        for _ in range(400):
            with socket.create_connection(("127.0.0.1", twin.ports["gateway"]), timeout=10) as connection:
                connection.sendall(b"%s HTTP/1.1\r\nHost: hotel\r\n%s\r\n\r\n" % (request_line, header))
                assert connection.recv(1000).split()[1] == status
        httpx.get(f"{twin.gateway_url}/rooms").raise_for_status()

    assert logs.answered() == 1
    assert len(logs.refusals()) < 40
    assert logs.own.count("\n") < 10
    assert "4111111111111111" not in logs.own + json.dumps(logs.calls)


def test_callers_who_leave_before_the_answer_are_logged(hotel: Hotel, logs: Logs) -> None:
    """Their calls have no status, and only these lines show that a service was too slow for them."""
    [pid] = [pid for name, _, pid, _ in hotel.stack.status() if name == "order_svc"]
    headers = {"Authorization": f"Bearer {hotel.caller().token}"}
    with logging_gateway(hotel, logs) as twin:
        freeze(pid)
        try:
            for _ in range(5):
                with pytest.raises(httpx.ReadTimeout):
                    httpx.get(f"{twin.gateway_url}/orders", headers=headers, timeout=0.5)
        finally:
            os.kill(pid, signal.SIGCONT)

    assert [line["flags"] for line in logs.calls] == ["DC"] * 5
