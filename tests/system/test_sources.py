"""Clients of one address: their calls and connections are limited together, and what becomes of their connections."""

import re
import socket
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from http.client import HTTPConnection
from pathlib import Path

import grpc
import httpx
import jwt
import pytest

from gotohotel.ids import new_id
from gotohotel.pay.v1.pay_service_pb2 import GetPaymentRequest
from gotohotel.pay.v1.pay_service_pb2_grpc import PayServiceStub
from gotohotel.rpc.tls import client_credentials
from ops import gateway, tokens
from ops.stack import Stack
from tests.conftest import Hotel, wait_for
from tests.gateways import ADDRESSES, Change, another_gateway, client_from, named, statistic

PLACES = 20
CONNECTIONS = "http.public.downstream_cx_active"
ONE, ANOTHER = "127.0.0.2", "127.0.0.3"


@contextmanager
def changed_gateway(hotel: Hotel, folder: Path, pattern: str, replacement: str) -> Iterator[Stack]:
    """A gateway of its own, with a part of the configuration replaced; nobody is connected to it."""
    with another_gateway(hotel.stack, folder, Change(pattern, replacement)) as twin:
        wait_for(lambda: statistic(twin, CONNECTIONS) == 0)  # what tried whether it listens has gone
        yield twin


def connect(stack: Stack, address: str) -> socket.socket:
    """A connection to the gateway from this address."""
    return socket.create_connection(("127.0.0.1", stack.ports["gateway"]), timeout=10, source_address=(address, 0))


def is_answered(stack: Stack, address: str) -> bool:
    """Whether a search from this address has an answer; it has none if the connection is closed at once."""
    with client_from(stack, address) as client:
        try:
            return client.get("/rooms").is_success
        except httpx.TransportError:
            return False


def memory_bytes(stack: Stack) -> int:
    """What Envoy has allocated now; its statistic of that is up to five seconds old."""
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(stack.admin_socket)), base_url="http://envoy") as admin:
        return int(admin.get("/memory").json()["allocated"])


def test_one_address_cannot_take_the_connections_of_others(hotel: Hotel, tmp_path: Path) -> None:
    """It takes those of its group. Most of 64 other addresses are in other groups, and do not notice."""
    limit = rf"(max_connections: ){gateway.LIMITS['MAX_GROUP_CONNECTIONS']}\b"
    with changed_gateway(hotel, tmp_path, limit, rf"\g<1>{PLACES}") as narrow:
        with ExitStack() as opened:
            for _ in range(10 * PLACES):
                opened.enter_context(connect(narrow, ONE))
            wait_for(lambda: statistic(narrow, "connection_limit.sources.limited_connections") == 9 * PLACES)
            wait_for(lambda: statistic(narrow, CONNECTIONS) == PLACES)
            assert not is_answered(narrow, ONE)
            assert sum(is_answered(narrow, address) for address in ADDRESSES) > 55

        wait_for(lambda: is_answered(narrow, ONE))
        assert all(is_answered(narrow, address) for address in ADDRESSES)


@pytest.mark.parametrize(
    ("before", "burst", "per_second"),
    [(r"stat_prefix: public\s+", "RATE_LIMIT", "RATE_LIMIT"), ("", "SUBJECT_BURST", "SUBJECT_RATE_LIMIT")],
    ids=["all callers", "one caller"],
)
def test_calls_from_all_addresses_are_counted_together(
    hotel: Hotel, tmp_path: Path, before: str, burst: str, per_second: str
) -> None:
    """Whichever filter chain they come through."""
    usual = rf"max_tokens: {gateway.LIMITS[burst]}, tokens_per_fill: {gateway.LIMITS[per_second]}, fill_interval: 1s"
    slow = f"max_tokens: {PLACES}, tokens_per_fill: 1, fill_interval: 60s"
    headers = {"Authorization": f"Bearer {hotel.caller().token}"}
    statuses = Counter[int]()
    with changed_gateway(hotel, tmp_path, rf"({before}token_bucket: {{){usual}", rf"\g<1>{slow}") as narrow:
        for address in ADDRESSES:
            with client_from(narrow, address) as client:
                statuses[client.get("/orders", headers=headers).status_code] += 1

    assert statuses == {200: PLACES, 429: len(ADDRESSES) - PLACES}


def test_each_address_has_calls_of_its_own(hotel: Hotel, tmp_path: Path) -> None:
    """One address has used up its calls, whatever other addresses it claims to have; another one still has its own."""
    limit = gateway.LIMITS["SOURCE_RATE_LIMIT"]
    limits = f"max_tokens: {limit}, tokens_per_fill: {limit}, fill_interval: 1s"
    slow = f"max_tokens: {PLACES}, tokens_per_fill: 1, fill_interval: 60s"
    with changed_gateway(hotel, tmp_path, limits, slow) as narrow:
        statuses = Counter[int]()
        with client_from(narrow, ONE) as client:
            for number in range(2 * PLACES):
                claimed = f"10.0.0.{number}"
                headers = {"X-Forwarded-For": claimed, "Forwarded": f"for={claimed}", "X-Real-IP": claimed}
                statuses[client.get("/rooms", headers=headers).status_code] += 1
        assert statuses == {200: PLACES, 429: PLACES}
        assert is_answered(narrow, ANOTHER)


def test_services_reach_pay_svc_when_clients_have_all_connections(hotel: Hotel, tmp_path: Path) -> None:
    """The egress listener does not count towards the limit of connections, and takes one all the same."""
    limit, few = r"(max_active_downstream_connections:) 10000", rf"\g<1> {PLACES}"
    with changed_gateway(hotel, tmp_path, limit, few) as narrow, ExitStack() as opened:
        for _ in range(PLACES):
            opened.enter_context(connect(narrow, ONE))
        wait_for(lambda: statistic(narrow, CONNECTIONS) == PLACES)
        assert not is_answered(narrow, ANOTHER)

        credentials = client_credentials(hotel.stack.tls_folder("order"))
        egress = grpc.secure_channel(f"127.0.0.1:{narrow.ports['egress']}", credentials, named("egress"))
        get_payment = PayServiceStub(opened.enter_context(egress)).GetPayment
        with pytest.raises(grpc.RpcError) as error:
            get_payment(GetPaymentRequest(order_id=new_id()), timeout=5)
    assert error.value.code() == grpc.StatusCode.PERMISSION_DENIED  # pay_svc's own answer: only guests read payments


def test_tokens_of_many_callers_hold_little_memory(hotel: Hotel, tmp_path: Path) -> None:
    """Each filter chain remembers checked tokens. With a thousand in each, all chains together would hold 900 MB, and
    Envoy would refuse every call until a restart.
    """
    key, key_id = (hotel.stack.home / tokens.KEY).read_text(), tokens.key_id(hotel.stack.home)
    claims = {"iss": tokens.ISSUER, "aud": tokens.AUDIENCE, "role": "guest", "exp": int(time.time()) + 600}
    signed = [
        jwt.encode({**claims, "sub": f"m-{number}", "long": "x" * 2700}, key, "ES256", headers={"kid": key_id})
        for number in range(200)
    ]
    with another_gateway(hotel.stack, tmp_path) as own:
        before = memory_bytes(own)
        for address in ADDRESSES:
            client = HTTPConnection("127.0.0.1", own.ports["gateway"], source_address=(address, 0))
            for token in signed:
                client.request("GET", "/no-such-path", headers={"Authorization": f"Bearer {token}"})
                with client.getresponse() as answer:
                    assert answer.read()
                    assert answer.status == 404  # not 401, nor 429 before the token is looked at
            client.close()
        assert memory_bytes(own) - before < 110_000_000


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
    """Whole, and not followed by a reset."""
    for _ in range(10):
        with connect(hotel.stack, ONE) as connection, connection.makefile("rb") as received:
            connection.sendall(request_bytes)
            head, found, body = received.read().partition(b"\r\n\r\n")
        assert found
        assert head.split()[1] == status
        length = re.search(rb"content-length: (\d+)", head)
        assert length is None or len(body) == int(length[1])


def test_ended_connections_hold_nothing(hotel: Hotel, tmp_path: Path) -> None:
    """Neither those of refused uploads, nor those that the gateway has ended and whose clients keep their end open."""
    ends = b"GET /rooms HTTP/1.1\r\nHost: hotel\r\nConnection: close\r\n\r\n"
    upload = b"POST /orders HTTP/1.1\r\nHost: hotel\r\nContent-Length: 10000000\r\n\r\n" + b"x" * 10_000_000
    limit, fewer = r"(max_active_downstream_connections:) 10000", r"\g<1> 1000"
    with changed_gateway(hotel, tmp_path, limit, fewer) as own, ExitStack() as opened:
        for _ in range(5):
            kept = opened.enter_context(connect(own, ONE))
            kept.sendall(ends)
            with connect(own, ONE) as refused, suppress(OSError):
                refused.sendall(upload)
        assert statistic(own, "http.public.downstream_cx_total") >= 10
        wait_for(lambda: statistic(own, CONNECTIONS) == 0)
        wait_for(lambda: statistic(own, rf"listener\.[^a-z]*_{own.ports['gateway']}\.downstream_cx_active") == 0)
