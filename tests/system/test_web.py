"""What browsers and HTTP clients expect of the gateway: CORS, gRPC-web, HEAD, OPTIONS, the description and its page."""

import base64
import json
import re
import struct
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from google.rpc import code_pb2, status_pb2

from gotohotel.order.v1.order_service_pb2 import CreateOrderRequest, SearchRoomsRequest, SearchRoomsResponse
from ops.errors import StackError
from ops.settings import origins_setting
from ops.stack import Stack
from tests.conftest import ROOT, Client, Hotel
from tests.system.test_keys import bearer, configured_gateway

PAGE, OTHER = "https://booking.example", "https://evil.example"
SEARCH = "/gotohotel.order.v1.OrderService/SearchRooms"
CREATE = "/gotohotel.order.v1.OrderService/CreateOrder"


@pytest.fixture
def gateway(hotel: Hotel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stack]:
    """A gateway that pages of one origin may call."""
    monkeypatch.setenv("GOTOHOTEL_CORS_ORIGINS", f"{PAGE}, http://localhost:3000")
    with configured_gateway(hotel.stack, tmp_path) as twin:
        yield twin


def test_pages_of_a_configured_origin_may_call(gateway: Stack) -> None:
    """The preflight needs no token. Every answer, refusals included, names the origin; pages of others may not call."""
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}
    token = bearer(gateway.token(subject="alice", role="guest"))
    with httpx.Client(base_url=gateway.gateway_url) as client:
        preflight = client.options("/orders", headers={"Origin": PAGE, **asked})
        of_another = client.options("/orders", headers={"Origin": OTHER, **asked})
        answers = [
            client.get("/rooms", headers={"Origin": PAGE}),
            client.get("/orders", headers={"Origin": PAGE, **token}),
            client.get("/orders", headers={"Origin": PAGE}),
            client.get("/nowhere", headers={"Origin": PAGE, **token}),
            client.post("/orders", headers={"Origin": PAGE, **token}, json={"cardno": "x"}),
        ]
        strange = client.get("/rooms", headers={"Origin": OTHER})

    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == PAGE
    assert "POST" in preflight.headers["access-control-allow-methods"]
    assert "authorization" in preflight.headers["access-control-allow-headers"]
    assert [answer.status_code for answer in answers] == [200, 200, 401, 404, 400]
    assert {answer.headers["access-control-allow-origin"] for answer in answers} == {PAGE}
    assert "retry-after" in answers[0].headers["access-control-expose-headers"]
    assert "access-control-allow-credentials" not in preflight.headers
    assert "access-control-allow-origin" not in of_another.headers
    assert "access-control-allow-origin" not in strange.headers


def test_without_the_setting_no_page_may_call(hotel: Hotel) -> None:
    """The default."""
    answer = httpx.get(f"{hotel.stack.gateway_url}/rooms", headers={"Origin": PAGE})

    assert answer.status_code == 200
    assert not [name for name in answer.headers if name.startswith("access-control")]


@pytest.mark.parametrize("origins", ["booking.example", "https://a.example/path", "https://*.example"])
def test_what_is_no_origin_is_refused(monkeypatch: pytest.MonkeyPatch, origins: str) -> None:
    """The sentence names the setting."""
    monkeypatch.setenv("GOTOHOTEL_CORS_ORIGINS", origins)

    with pytest.raises(StackError, match="GOTOHOTEL_CORS_ORIGINS"):
        origins_setting()


def framed(message: bytes) -> bytes:
    """A message as gRPC-web sends it."""
    return struct.pack(">BI", 0, len(message)) + message


def frames(body: bytes) -> list[tuple[int, bytes]]:
    """(flag, content) of each frame of an answer; flag 128 marks the trailers."""
    found = []
    while body:
        flag, length = struct.unpack(">BI", body[:5])
        found.append((flag, body[5 : 5 + length]))
        body = body[5 + length :]
    return found


@pytest.mark.parametrize("kind", ["application/grpc-web+proto", "application/grpc-web-text"])
def test_browsers_call_with_grpc_web(hotel: Hotel, guest: Client, kind: str) -> None:
    """Over HTTP/1.1: a public call, a call with a token, and an error with its details."""

    def call(path: str, message: bytes, **headers: str) -> tuple[httpx.Response, bytes]:
        sent = framed(message)
        content = base64.b64encode(sent) if kind.endswith("text") else sent
        answer = httpx.post(
            hotel.stack.gateway_url + path,
            content=content,
            headers={"content-type": kind, "accept": kind, "x-grpc-web": "1", **headers},
        )
        if not kind.endswith("text"):
            return answer, answer.content
        # Each piece of an answer is encoded by itself, and may be padded.
        pieces = re.findall(rb"[A-Za-z0-9+/]+=*", answer.content)
        return answer, b"".join(base64.b64decode(piece) for piece in pieces)

    answer, body = call(SEARCH, SearchRoomsRequest(guest_cnt=2).SerializeToString())
    (flag, message), (trailers_flag, trailers) = frames(body)
    assert (answer.status_code, answer.headers["content-type"].split("+")[0]) == (200, kind.split("+")[0])
    assert (flag, trailers_flag) == (0, 128)
    assert b"grpc-status:0" in trailers
    assert len(SearchRoomsResponse.FromString(message).rooms) >= 3

    request = CreateOrderRequest(name="Guest", room_type="Normal", guest_cnt=9).SerializeToString()
    refused, body = call(CREATE, request, authorization=f"Bearer {guest.token}")
    said = body + str(refused.headers).encode()
    assert b"guestCnt" in said
    assert b"grpc-status-details-bin" in said
    without, body = call(CREATE, request)
    assert b"grpc-status': '16" in body + str(without.headers).encode() or b"grpc-status:16" in body


@pytest.mark.parametrize("http2", [True, False])
@pytest.mark.parametrize("path", ["/rooms", "/orders", "/healthz", "/openapi.json", "/docs", "/nowhere"])
def test_head_is_get_without_the_body(hotel: Hotel, guest: Client, path: str, http2: bool) -> None:
    """The same status, type and length."""
    options = {"headers": bearer(guest.token), "base_url": hotel.stack.gateway_url, "timeout": 20.0}
    # Without negotiation over TLS, a client speaks HTTP/2 only if it does not speak HTTP/1.1.
    with httpx.Client(http1=not http2, http2=http2, **options) as client:  # type: ignore[arg-type]
        got, head = client.get(path), client.head(path)
        again = client.get(path)  # the connection is still good

    assert head.content == b""
    assert (head.status_code, again.status_code) == (got.status_code, got.status_code)
    assert head.headers["content-type"] == got.headers["content-type"]
    assert head.headers["content-length"] == str(len(got.content))


def test_options_names_the_methods_of_a_path(hotel: Hotel) -> None:
    """Without a token; a path that does not exist is 404."""
    with httpx.Client(base_url=hotel.stack.gateway_url) as client:
        paths = ("/orders", "/orders/42", "/nowhere", "/healthz")
        orders, one, nowhere, health = (client.options(path) for path in paths)

    assert (orders.status_code, orders.content) == (204, b"")
    assert set(orders.headers["allow"].split(", ")) == {"GET", "HEAD", "POST", "OPTIONS"}
    assert set(one.headers["allow"].split(", ")) == {"GET", "HEAD", "DELETE", "OPTIONS"}
    assert set(health.headers["allow"].split(", ")) == {"GET", "HEAD", "OPTIONS"}
    assert nowhere.status_code == 404
    assert nowhere.json()["details"][0]["reason"] == "NO_SUCH_PATH"


def test_answers_say_how_many_calls_are_left(guest: Client) -> None:
    """Of the caller's own limit."""
    first, second = (guest.request("GET", "/orders") for _ in range(2))

    assert first.headers["x-ratelimit-limit"].startswith("100")
    assert int(second.headers["x-ratelimit-remaining"]) < 100
    assert "x-ratelimit-reset" in second.headers


def test_the_description_is_served(hotel: Hotel) -> None:
    """To anybody."""
    answer = httpx.get(f"{hotel.stack.gateway_url}/openapi.json")

    assert answer.headers["content-type"] == "application/json"
    assert answer.json() == json.loads((ROOT / "gotohotel" / "openapi.json").read_text())


def test_the_documentation_page_loads_nothing_from_elsewhere(hotel: Hotel) -> None:
    """Its files come from the gateway, and its policy forbids everything else."""
    with httpx.Client(base_url=hotel.stack.gateway_url) as client:
        page = client.get("/docs")
        parts = {
            path: client.get(path) for path in ("/docs/swagger-ui.css", "/docs/swagger-ui-bundle.js", "/docs/start.js")
        }

    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'self'" in page.headers["content-security-policy"]
    assert "http://" not in page.text
    assert "https://" not in page.text
    for path, part in parts.items():
        assert part.status_code == 200, path
        assert path in page.text, path
    assert "validatorUrl: null" in parts["/docs/start.js"].text  # otherwise it asks validator.swagger.io
    assert parts["/docs/swagger-ui-bundle.js"].content == (ROOT / "envoy/docs/swagger-ui-bundle.js").read_bytes()


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "HEAD"])
def test_grpc_web_is_a_post(hotel: Hotel, guest: Client, method: str) -> None:
    """Another method, or a query, does not reach a service."""
    headers = {"content-type": "application/grpc-web+proto", **bearer(guest.token)}
    path = "/gotohotel.order.v1.OrderService/ListOrders"
    with httpx.Client(base_url=hotel.stack.gateway_url) as client:
        wrong = client.request(method, path, headers=headers, content=framed(b""))
        with_query = client.post(f"{path}?x=1", headers=headers, content=framed(b""))
        flagged = client.post(path, headers=headers, content=b"\x80" + framed(b"")[1:])

    for answer in (wrong, with_query, flagged):
        status = google_status(answer)
        assert status.code == code_pb2.INVALID_ARGUMENT, answer.headers


def google_status(answer: httpx.Response) -> status_pb2.Status:
    """The google.rpc.Status in a header, or in the trailers."""
    found = re.search(r"grpc-status-details-bin:? ?([\w+/=]+)", f"{dict(answer.headers)}".replace("'", ""))
    encoded = found[1] if found else re.findall(r"grpc-status-details-bin:([\w+/=]+)", answer.text)[0]
    return status_pb2.Status.FromString(base64.b64decode(encoded + "=="))
