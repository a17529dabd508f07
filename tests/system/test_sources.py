"""The connections and calls from one address are limited, and a client can't say that it has another address."""

import re
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import grpc
import httpx
import pytest

from gotohotel.ids import new_id
from gotohotel.pay.v1.pay_service_pb2 import GetPaymentRequest
from gotohotel.pay.v1.pay_service_pb2_grpc import PayServiceStub
from gotohotel.rpc.tls import client_credentials
from ops import gateway
from ops.stack import Stack
from tests.conftest import Hotel, wait_for
from tests.gateways import configuration_for, named, running_envoy, statistic

PLACES = 20
TAKES_ALL = "127.0.0.2"
OTHERS = [f"127.0.1.{number}" for number in range(1, 65)]


@contextmanager
def changed_gateway(hotel: Hotel, folder: Path, pattern: str, replacement: str) -> Iterator[Stack]:
    """A gateway of its own, with a part of the configuration replaced."""
    twin = Stack.on_free_ports(folder)
    text, found = re.subn(pattern, replacement, configuration_for(twin, hotel.stack))
    assert found
    (folder / "envoy.yaml").write_text(text)
    with running_envoy(twin):
        yield twin


def connect(stack: Stack, address: str) -> socket.socket:
    """A connection to the gateway from this address."""
    return socket.create_connection(("127.0.0.1", stack.ports["gateway"]), timeout=10, source_address=(address, 0))


def is_answered(stack: Stack, address: str) -> bool:
    """Whether a search from this address has an answer; it has none if the connection is closed at once."""
    with httpx.Client(transport=httpx.HTTPTransport(local_address=address), base_url=stack.gateway_url) as client:
        try:
            return client.get("/rooms").is_success
        except httpx.TransportError:
            return False


def test_one_address_cannot_take_the_connections_of_others(hotel: Hotel, tmp_path: Path) -> None:
    """It takes those of its group. Of 64 other addresses most are in other groups, and do not notice."""
    limit = rf'("max_connections": ){gateway.MAX_SOURCE_CONNECTIONS}\b'
    with changed_gateway(hotel, tmp_path, limit, rf"\g<1>{PLACES}") as narrow:
        with ExitStack() as opened:
            for _ in range(10 * PLACES):
                opened.enter_context(connect(narrow, TAKES_ALL))
            wait_for(lambda: statistic(narrow, "connection_limit.source.limited_connections") == 9 * PLACES)
            assert statistic(narrow, "cluster.public.upstream_cx_active") == PLACES
            assert not is_answered(narrow, TAKES_ALL)
            assert sum(is_answered(narrow, address) for address in OTHERS) > 50

        wait_for(lambda: is_answered(narrow, TAKES_ALL))
        assert all(is_answered(narrow, address) for address in OTHERS)


@pytest.mark.parametrize(
    "claim",
    [b"PROXY TCP4 127.0.1.1 127.0.0.1 1 2\r\n", b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\x7f\0\1\1\x7f\0\0\1\0\1\0\2"],
    ids=["version 1", "version 2"],
)
def test_an_address_that_a_client_claims_is_not_believed(hotel: Hotel, claim: bytes) -> None:
    """The gateway writes the address in front by itself. What a client writes there is no HTTP."""
    with connect(hotel.stack, TAKES_ALL) as connection:
        connection.sendall(claim + b"GET /rooms HTTP/1.1\r\nHost: hotel\r\n\r\n")
        assert not connection.recv(100).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET /rooms HTTP/1.1\r\nHost: hotel\r\nConnection: close\r\n\r\n", b"200"),
        (b"GET /rooms HTTP/1.0\r\nHost: hotel\r\n\r\n", b"426"),
        (b"GET /rooms HTTP/1.1\r\nHost: hotel\r\nX-Long: " + b"x" * 40_000 + b"\r\n\r\n", b"431"),
        (b"no HTTP\r\n\r\n" + b"x" * 5000, b"400"),
    ],
    ids=["as asked", "old HTTP", "long headers", "no HTTP"],
)
def test_the_answer_arrives_before_the_connection_ends(hotel: Hotel, request_bytes: bytes, status: bytes) -> None:
    """Whole, and followed by a proper end, not by a reset."""
    for _ in range(10):
        with connect(hotel.stack, TAKES_ALL) as connection, connection.makefile("rb") as received:
            connection.sendall(request_bytes)
            head, found, body = received.read().partition(b"\r\n\r\n")
        assert head.split()[1] == status
        length = re.search(rb"content-length: (\d+)", head)
        assert found
        assert length is None or len(body) == int(length[1])


def test_each_address_has_calls_of_its_own(hotel: Hotel, tmp_path: Path) -> None:
    """The limit of calls for each source counts the client's address, not the listener's in front."""
    limit = gateway.LIMITS["SOURCE_RATE_LIMIT"]
    limits = f"max_tokens: {limit}, tokens_per_fill: {limit}"
    with changed_gateway(hotel, tmp_path, limits, "max_tokens: 10, tokens_per_fill: 10") as narrow:
        transport = httpx.HTTPTransport(local_address=TAKES_ALL)
        with httpx.Client(transport=transport, base_url=narrow.gateway_url) as client:
            wait_for(lambda: client.get("/rooms").status_code == httpx.codes.TOO_MANY_REQUESTS)
        assert is_answered(narrow, OTHERS[0])


def test_services_reach_pay_svc_when_clients_have_all_connections(hotel: Hotel, tmp_path: Path) -> None:
    """The egress listener does not count towards the limit of connections, and takes one all the same."""
    limit, few = r"(max_active_downstream_connections:) 10000", rf"\g<1> {PLACES}"
    with changed_gateway(hotel, tmp_path, limit, few) as narrow, ExitStack() as opened:
        wait_for(lambda: statistic(narrow, "cluster.public.upstream_cx_active") == 0)  # what tried whether it listens
        for address in OTHERS[:PLACES]:
            opened.enter_context(connect(narrow, address))
        wait_for(lambda: statistic(narrow, "cluster.public.upstream_cx_active") == PLACES)
        assert not is_answered(narrow, TAKES_ALL)

        credentials = client_credentials(hotel.stack.tls_folder("order"))
        egress = grpc.secure_channel(f"127.0.0.1:{narrow.ports['egress']}", credentials, named("egress"))
        get_payment = PayServiceStub(opened.enter_context(egress)).GetPayment
        with pytest.raises(grpc.RpcError) as error:
            get_payment(GetPaymentRequest(order_id=new_id()), timeout=5)
    assert error.value.code() == grpc.StatusCode.PERMISSION_DENIED  # pay_svc's own answer: only guests read payments
