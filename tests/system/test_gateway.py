"""What the gateway accepts, which identity it passes on, and how it refuses calls.

Long because each kind of hostile call has a test.
"""

import base64
import http.client
import json
import re
import socket
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import grpc
import httpx
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from gotohotel.mypage.v1.mypage_service_pb2 import GetMyPageRequest, MyPage
from gotohotel.order.v1.order_service_pb2 import SearchRoomsRequest, SearchRoomsResponse
from gotohotel.pay.v1.pay_service_pb2 import CancelPaymentRequest, Payment
from gotohotel.reservation.v1.reservation_service_pb2 import ListReservationsRequest, ListReservationsResponse
from ops.gateway.rpcs import public_rpcs
from ops.services import SERVICES
from ops.tokens import AUDIENCE, ISSUER, key_id
from pay_svc.sandbox import APPROVED
from tests.conftest import Client, Hotel, wait_for
from tests.gateways import Change, another_gateway, grpc_channel
from tests.system.test_journey import query

NOBODYS_ORDER = "00000000-0000-7000-8000-000000000000"


def claims(**changes: Any) -> dict[str, Any]:
    """The claims of a good token with these changes; None removes a claim."""
    now = int(time.time())
    good = {"iss": ISSUER, "aud": AUDIENCE, "sub": "alice", "role": "desk", "iat": now, "exp": now + 600}
    return {name: value for name, value in {**good, **changes}.items() if value is not None}


def signed(hotel: Hotel, **changes: Any) -> str:
    """A token signed with the stack's own key."""
    key = (hotel.stack.home / "token-key.pem").read_text()
    return jwt.encode(claims(**changes), key, "ES256", headers={"kid": key_id(hotel.stack.home)})


def test_a_good_token_is_let_in(hotel: Hotel) -> None:
    """Control for the tests below."""
    assert status_with(hotel, signed(hotel)) == 200


@pytest.mark.parametrize(
    "changes",
    [
        {"exp": int(time.time()) - 3600},
        {"exp": None},
        {"exp": int(time.time()) + 10 * 365 * 86400},
        {"aud": "another"},
        {"aud": None},
        {"iss": "https://elsewhere.localhost"},
        {"exp": 2**63 - 1},
        {"exp": 2**63 - 1, "iat": None},
        {"exp": int(time.time()) + 2 * 86400},
        {"sub": None},
        {"sub": "a\nb"},
        {"sub": "a" * 256},
        {"sub": "a" * 3000},
        {"sub": APPROVED},
        {"sub": "4242 4242 4242 4242"},
        {"sub": "앨리스"},
    ],
    ids=[
        *("expired", "no exp", "ten years", "other audience", "no audience", "other issuer"),
        *("exp near 2^63", "exp near 2^63, no iat", "two days", "no subject", "control character"),
        *("256 characters", "3000 characters", "card number", "card number with blanks", "not ASCII"),
    ],
)
def test_a_token_with_bad_claims_is_refused(hotel: Hotel, changes: dict[str, Any]) -> None:
    """A token with bad claims is refused even if it is signed with the right key."""
    assert status_with(hotel, signed(hotel, **changes)) == 401


def test_a_forged_token_is_refused(hotel: Hotel) -> None:
    """A token that is signed with another key, unsigned, truncated or malformed gets 401."""
    other = jwt.encode(
        claims(), ec.generate_private_key(ec.SECP256R1()), "ES256", headers={"kid": key_id(hotel.stack.home)}
    )
    unsigned = f"{encoded({'alg': 'none', 'kid': key_id(hotel.stack.home)})}.{encoded(claims())}."

    for token in (other, unsigned, signed(hotel)[:-20], "x"):
        assert status_with(hotel, token) == 401


def test_the_scheme_is_not_case_sensitive(hotel: Hotel) -> None:
    """RFC 9110: `bearer` is `Bearer`. Anything before or after the token is refused."""
    token = signed(hotel)
    expected = {
        "Bearer {}": 200,
        "bearer {}": 200,
        "BEARER  {}": 200,
        "Basic x Bearer {}": 401,
        "Bearer {} x": 401,
        "{}": 401,
    }
    for written, status in expected.items():
        headers = {"Authorization": written.format(token)}
        assert httpx.get(f"{hotel.stack.gateway_url}/orders", headers=headers).status_code == status, written


def test_a_subject_of_255_characters_is_let_in(hotel: Hotel) -> None:
    """The longest one, with every kind of character that is allowed; a long number that is no card number too."""
    for subject in ("a" * 255, "auth0|alice@example.com/~!#", "4242424242424241", "1" * 12):
        assert status_with(hotel, signed(hotel, sub=subject)) == 200, subject


def test_an_extension_that_must_be_understood_is_refused(hotel: Hotel) -> None:
    """RFC 7515: a token with a critical header parameter that the gateway does not know is not valid."""
    key = (hotel.stack.home / "token-key.pem").read_text()
    token = jwt.encode(claims(), key, "ES256", headers={"kid": key_id(hotel.stack.home), "crit": ["x"], "x": 1})

    assert status_with(hotel, token) == 401


@pytest.mark.parametrize(
    ("version", "header", "status"), [("1.0", "", 426), ("1.1", "Transfer-Encoding: zip\r\n", 501)]
)
def test_what_the_gateway_cannot_speak_is_an_error_of_the_contract(
    hotel: Hotel, version: str, header: str, status: int
) -> None:
    """HTTP/1.0 and unknown transfer encodings get the same JSON shape as every other error."""
    with socket.create_connection(("127.0.0.1", hotel.stack.ports["gateway"]), timeout=10) as raw:
        raw.sendall(f"GET /rooms HTTP/{version}\r\nHost: x\r\n{header}\r\n".encode())
        answer = http.client.HTTPResponse(raw)
        answer.begin()
        error = json.loads(answer.read())

    assert answer.status == status
    assert error["details"][0]["domain"] == "gotohotel"


def test_a_token_in_the_query_string_is_not_looked_at(hotel: Hotel) -> None:
    """A token in the query string would appear in logs, so only the header counts."""
    answer = httpx.get(f"{hotel.stack.gateway_url}/orders", params={"access_token": signed(hotel)})

    assert answer.status_code == 401


def encoded(part: dict[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=")


def status_with(hotel: Hotel, token: str) -> int:
    answer = httpx.get(f"{hotel.stack.gateway_url}/orders", headers={"Authorization": f"Bearer {token}"})
    return answer.status_code


def test_identity_headers_of_a_client_are_dropped(hotel: Hotel, guest: Client) -> None:
    """The identity of the caller comes from the token only."""
    order = hotel.order(hotel.caller())
    spoofed = {"x-gotohotel-subject": "desk", "x-gotohotel-role": "desk"}

    with_token = guest.request("GET", f"/orders/{order['id']}", headers=spoofed)
    without = httpx.get(f"{hotel.stack.gateway_url}/orders/{order['id']}", headers=spoofed)

    assert with_token.status_code == 404
    assert without.status_code == 401
    assert guest.request("GET", "/reservations", headers=spoofed).status_code == 403


OWNED = [
    ("GET", "/orders/{id}", None),
    ("POST", "/orders/{id}:pay", {"cardNo": "4242424242424242"}),
    ("POST", "/payments", {"orderId": "{id}", "cardNo": "4242424242424242"}),
    ("POST", "/orders/{id}:cancel", {}),
    ("DELETE", "/orders/{id}", None),
    ("GET", "/payments/{id}", None),
    ("GET", "/mypages/{id}", None),
]


@pytest.mark.parametrize(("method", "path", "body"), OWNED)
def test_somebody_elses_order_is_not_found(
    hotel: Hotel, guest: Client, method: str, path: str, body: dict[str, str] | None
) -> None:
    """Every RPC that names an order gives the same answer as for an order that does not exist."""
    order_id = hotel.order(hotel.caller())["id"]
    hotel.page_with(order_id, paymentStatus="APPROVED")

    def answer(named: str) -> httpx.Response:
        filled = {name: value.replace("{id}", named) for name, value in body.items()} if body is not None else None
        return guest.request(method, path.replace("{id}", named), json=filled)

    others, nobodys = answer(order_id), answer(NOBODYS_ORDER)

    assert others.status_code == 404
    assert others.content == nobodys.content
    assert hotel.order_with(order_id)["status"] == "PAID"


@pytest.mark.parametrize(("path", "name"), [("/orders", "orders"), ("/payments", "payments"), ("/mypages", "mypages")])
def test_a_list_shows_a_guest_what_is_hers(hotel: Hotel, guest: Client, path: str, name: str) -> None:
    """A guest sees only her own entries; the desk sees all."""
    order_id = hotel.order(hotel.caller())["id"]
    hotel.page_with(order_id, paymentStatus="APPROVED")

    assert guest.get(path)[name] == []
    assert order_id in hotel.desk.request("GET", path).text


DESKS = [
    ("GET", "/reservations"),
    ("GET", f"/reservations/{NOBODYS_ORDER}"),
    ("POST", f"/reservations/{NOBODYS_ORDER}:confirm"),
    ("POST", f"/reservations/{NOBODYS_ORDER}:reject"),
    ("POST", f"/reservations/{NOBODYS_ORDER}:cancel"),
    ("GET", "/roomTypes"),
    ("PUT", "/roomTypes/Prime"),
]


@pytest.mark.parametrize(("method", "path"), DESKS)
def test_the_desks_calls_are_the_desks(guest: Client, method: str, path: str) -> None:
    """A guest gets PERMISSION_DENIED, whether or not the path names something that exists."""
    answer = guest.request(method, path, json=None if method == "GET" else {})

    assert answer.status_code == 403
    assert answer.json()["details"][0]["reason"] == "PERMISSION_DENIED"


BAD = [
    ({"name": ""}, "name"),
    ({"name": "x" * 101}, "name"),
    ({"name": "4242 4242 4242 4242"}, "name"),
    ({"name": "a\u0000b"}, "name"),
    ({"phoneNo": "call me"}, "phoneNo"),
    ({"phoneNo": "123456789012345"}, "phoneNo"),
    ({"phoneNo": "+999-12345678"}, "phoneNo"),
    ({"roomType": ""}, "roomType"),
    ({"roomType": "Palace"}, "roomType"),
    ({"guestCnt": -1}, "guestCnt"),
    ({"guestCnt": 99}, "guestCnt"),
    ({"checkIn": "tomorrow"}, "checkIn"),
    ({"checkIn": "2020-01-01"}, "checkIn"),
    ({"checkIn": "20300101"}, "checkIn"),
    ({"checkOut": "2020-01-01"}, "checkOut"),
    ({"cardNo": "4242424242424241"}, "cardNo"),
    ({"cardNo": "١٢٣٤١٢٣٤١٢٣٤١٢٣٤"}, "cardNo"),
    ({"requestId": "x" * 65}, "requestId"),
]


@pytest.mark.parametrize(("change", "field"), BAD)
def test_bad_input_is_refused_by_field(hotel: Hotel, guest: Client, change: dict[str, Any], field: str) -> None:
    """The error names the field, and nothing is stored."""
    answer = guest.request("POST", "/orders", json={**hotel.booking(), **change})

    details = answer.json()["details"]
    assert answer.status_code == 400
    assert details[0]["reason"] == "INVALID_ARGUMENT"
    assert details[1]["fieldViolations"][0]["field"] == field
    assert guest.get("/orders")["orders"] == []


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/nowhere", None, 404),
        ("GET", "/orders?pageSize=-1", None, 400),
        ("GET", "/orders?pageToken=zzz", None, 400),
        ("GET", "/orders?colour=red", None, 400),
        ("GET", "/orders/42", None, 400),
        ("POST", "/orders", "{", 400),
        ("POST", "/orders", '{"colour": "red"}', 400),
        ("POST", "/orders", '{"name": "' + "x" * 70_000 + '"}', 413),
        ("GET", "/orders%2f..%2fx", None, 400),
    ],
)
def test_every_error_has_the_contracts_shape(
    guest: Client, method: str, path: str, body: str | None, status: int
) -> None:
    """Errors from a service and from the gateway itself have the same format."""
    answer = guest.request(method, path, content=body)

    error = answer.json()
    assert answer.status_code == status
    assert isinstance(error["code"], int)
    assert isinstance(error["message"], str)
    assert error["details"][0]["@type"] == "type.googleapis.com/google.rpc.ErrorInfo"
    assert error["details"][0]["domain"] == "gotohotel"
    assert error["details"][0]["reason"].isupper()
    assert error["details"][0]["metadata"]["retryable"] == "false"


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("PUT", "/orders", "GET, HEAD, OPTIONS, POST"),
        ("DELETE", "/rooms", "GET, HEAD, OPTIONS"),
        ("POST", f"/mypages/{NOBODYS_ORDER}", "GET, HEAD, OPTIONS"),
    ],
)
def test_a_method_that_a_path_does_not_have_is_405(guest: Client, method: str, path: str, allow: str) -> None:
    """The header Allow lists those that it has."""
    answer = guest.request(method, path, json={} if method == "POST" else None)

    assert answer.status_code == 405
    assert sorted(answer.headers["allow"].split(", ")) == allow.split(", ")
    assert answer.json()["details"][0]["reason"] == "METHOD_NOT_ALLOWED"


def test_no_answer_is_kept_by_a_cache_or_tells_of_grpc(hotel: Hotel, guest: Client) -> None:
    """Answers are about guests; what gRPC says in headers is in the body."""
    for answer in (
        guest.request("GET", "/orders"),
        guest.request("GET", f"/orders/{NOBODYS_ORDER}"),
        guest.request("GET", "/nowhere"),
        httpx.get(f"{hotel.stack.gateway_url}/orders"),
    ):
        assert answer.headers["cache-control"] == "no-store"
        assert not [name for name in answer.headers if name.startswith("grpc-")]


RATE = {"currencyCode": "KRW", "units": "1000"}


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"capacity": None}, "capacity"),
        ({"capacity": -1}, "capacity"),
        ({"maxGuests": 0}, "maxGuests"),
        ({"nightlyRate": None}, "nightlyRate"),
        ({"nightlyRate": {**RATE, "units": "9000000000000000000"}}, "nightlyRate"),
        ({"nightlyRate": {**RATE, "units": "1000000001"}}, "nightlyRate"),
        ({"nightlyRate": {**RATE, "units": "-1"}}, "nightlyRate"),
        ({"nightlyRate": {**RATE, "nanos": 500_000_000}}, "nightlyRate"),
        ({"nightlyRate": {**RATE, "nanos": -1}}, "nightlyRate"),
        ({"nightlyRate": {**RATE, "currencyCode": "USD"}}, "nightlyRate"),
        ({"nightlyRate": {**RATE, "currencyCode": "won"}}, "nightlyRate"),
    ],
)
def test_a_room_type_that_cannot_be_is_refused_by_field(hotel: Hotel, change: dict[str, Any], field: str) -> None:
    """The error names the field, and the room type is not offered."""
    body = {"capacity": 1, "maxGuests": 2, "nightlyRate": RATE, **change}

    answer = hotel.desk.request("PUT", "/roomTypes/Odd", json=body)

    assert answer.status_code == 400
    assert answer.json()["details"][1]["fieldViolations"][0]["field"] == field
    assert "Odd" not in [room["roomType"] for room in hotel.search()]


def test_what_is_typed_into_a_path_is_not_logged(hotel: Hotel, guest: Client) -> None:
    """Otherwise anybody could put a card number into the access log."""
    for path in ("/x/4242424242424242", "/orders/4242424242424242", "/rooms?checkIn=4242424242424242"):
        httpx.get(hotel.stack.gateway_url + path)
        guest.request("GET", path)
    wait_for(lambda: (hotel.stack.home / "log" / "access.log").stat().st_size > 0)

    assert "4242424242424242" not in (hotel.stack.home / "log" / "access.log").read_text()


def test_a_clients_trace_is_not_kept(hotel: Hotel, guest: Client) -> None:
    """The gateway replaces a client's traceparent, because it is stored with every event."""
    trace = {"traceparent": f"00-{'0' * 16}{APPROVED}-{'0' * 15}1-01"}

    order = guest.request("POST", "/orders", json=hotel.booking(), headers=trace).json()

    kept = query(hotel, "order_svc", "SELECT traceparent FROM outbox WHERE aggregate_id = $1", order["id"])

    assert re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-01", kept)
    assert APPROVED not in kept


def test_a_body_that_comes_in_pieces_is_too_large_all_the_same(hotel: Hotel, guest: Client) -> None:
    """The gateway refuses the body by its Content-Length, before all of it has arrived."""
    with closing(http.client.HTTPConnection("127.0.0.1", hotel.stack.ports["gateway"], timeout=20)) as connection:
        connection.putrequest("POST", "/orders")
        connection.putheader("Authorization", f"Bearer {guest.token}")
        connection.putheader("Content-Length", "70000")
        connection.endheaders(b'{"name": "' + b"x" * 30_000)
        answer = connection.getresponse()

        assert answer.status == 413
        assert json.loads(answer.read())["details"][0]["reason"] == "PAYLOAD_TOO_LARGE"


def test_another_protocol_is_refused_at_once(guest: Client) -> None:
    """A protocol upgrade gets an error; it is not kept waiting for the end of a body."""
    wanted = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}

    answer = guest.request("GET", "/rooms", headers=wanted)

    assert answer.status_code == 400
    assert answer.json()["details"][0]["reason"] == "INVALID_ARGUMENT"


def test_a_method_that_does_not_exist_is_not_logged(hotel: Hotel) -> None:
    """A method can be any word, for example a card number, so the access log does not contain methods."""
    with closing(http.client.HTTPConnection("127.0.0.1", hotel.stack.ports["gateway"], timeout=20)) as connection:
        connection.request(APPROVED, "/rooms")
        assert 400 <= connection.getresponse().status < 500

    wait_for(lambda: "route" in (hotel.stack.home / "log" / "access.log").read_text())
    assert '"method"' not in (hotel.stack.home / "log" / "access.log").read_text()


@pytest.mark.parametrize(
    "header",
    [
        ("grpc-timeout", "abc"),
        ("grpc-timeout", ""),
        ("grpc-timeout", "-1S"),
        ("grpc-timeout", "5S, 5S"),
        ("grpc-encoding", "foo"),
        ("x-foo-bin", "!!!"),
        ("grpc-tags-bin", "!!!"),
        ("grpc-trace-bin", "***"),
        ("grpc-previous-rpc-attempts", "x"),
    ],
)
def test_a_header_that_grpc_cannot_read_harms_nobody(hotel: Hotel, header: tuple[str, str]) -> None:
    """All callers share one connection to a service. Neither this call nor other calls fail."""
    with httpx.Client(base_url=hotel.stack.gateway_url) as client:
        statuses = {client.get("/rooms", headers=dict([header])).status_code for _ in range(5)}
        statuses |= {client.get("/rooms").status_code for _ in range(100)}

    assert statuses == {200}


def test_an_id_in_the_query_cannot_override_the_path(hotel: Hotel, guest: Client) -> None:
    """An order id in the query is refused, however its name is spelled."""
    mine, other = hotel.order(guest, card=None), hotel.order(guest, card=None)

    for name in ("orderId", "order_id", "id", "order%49d", "orderId.x"):
        answer = guest.request("DELETE", f"/orders/{mine['id']}?{name}={other['id']}")
        assert answer.status_code == 400
        assert answer.json()["details"][0]["reason"] == "INVALID_ARGUMENT"
        assert answer.json()["message"] == "ids are not allowed in the query string"
    assert hotel.order_with(other["id"])["status"] == "PAYMENT_PENDING"


@pytest.mark.parametrize(
    ("body", "field"), [({"cardNo": 4242424242424242}, "cardNo"), ({"guestCnt": "4242424242424242"}, "guestCnt")]
)
def test_a_refusal_names_the_field_and_does_not_repeat_the_value(
    hotel: Hotel, guest: Client, body: dict[str, Any], field: str
) -> None:
    """The error does not contain the value, because it may be a card number."""
    answer = guest.request("POST", "/orders", json={**hotel.booking(), **body})

    assert answer.status_code == 400
    assert "42424242" not in answer.text
    assert answer.json()["details"][1]["fieldViolations"][0]["field"] == field


def test_text_that_is_no_utf_8_is_refused(guest: Client) -> None:
    """The answer is INVALID_ARGUMENT and reveals nothing about the implementation."""
    for path in ("/rooms?checkIn=%ff", "/orders/%ff", "/payments?pageToken=%ff", "/mypages/%c3%28"):
        answer = guest.request("GET", path)
        assert answer.status_code == 400, path
        assert answer.json()["details"][0]["reason"] == "INVALID_ARGUMENT"
        assert "protobuf" not in answer.text


def test_json_on_a_grpc_path_is_refused(guest: Client) -> None:
    """The answer is 415, not a 5xx that clients would retry."""
    answer = guest.request("POST", "/gotohotel.order.v1.OrderService/ListOrders", json={})

    assert answer.status_code == 415
    assert answer.json()["details"][0]["reason"] == "UNSUPPORTED_MEDIA_TYPE"


def test_a_status_that_does_not_exist_is_refused_over_grpc_too(hotel: Hotel, channel: Any) -> None:
    """Protobuf accepts any number for an enum, so the service has to check it."""
    request = ListReservationsRequest()
    request.MergeFromString(b"\x08\x63")  # status = 99

    with pytest.raises(grpc.RpcError) as error:
        call(
            channel,
            "/gotohotel.reservation.v1.ReservationService/ListReservations",
            request,
            ListReservationsResponse,
            hotel.desk.token,
        )

    assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_a_path_is_normalised_before_it_is_looked_at(hotel: Hotel) -> None:
    """A path that begins with the public one gives no access to the others."""
    for path in ("/rooms/../orders", "/rooms/%2e%2e/orders", "//orders", "/./orders"):
        # This client sends the path unchanged; others would normalise it first.
        with closing(http.client.HTTPConnection("127.0.0.1", hotel.stack.ports["gateway"], timeout=5)) as raw:
            raw.request("GET", path)
            assert raw.getresponse().status in (400, 401), path


def test_a_body_cannot_override_the_path(hotel: Hotel, guest: Client) -> None:
    """A body that names another order than the path is refused; one that names the same order is not."""
    mine, other = hotel.order(guest, card=None), hotel.order(guest, card=None)

    for name in ("orderId", "order_id"):
        answer = guest.request("POST", f"/orders/{mine['id']}:pay", json={name: other["id"], "cardNo": APPROVED})
        assert answer.status_code == 400
        assert answer.json()["details"][1]["fieldViolations"][0]["field"] == "orderId"
    assert [hotel.order_with(each["id"])["status"] for each in (mine, other)] == ["PAYMENT_PENDING"] * 2
    assert guest.post(f"/orders/{mine['id']}:pay", {"orderId": mine["id"], "cardNo": APPROVED})["status"] == "PAID"


@pytest.fixture
def channel(hotel: Hotel) -> Any:
    """A gRPC channel to the gateway."""
    with grpc_channel(hotel.stack, "gateway") as opened:
        yield opened


def call(channel: Any, path: str, request: Any, response_type: Any, token: str | None = None) -> Any:
    method = channel.unary_unary(
        path, request_serializer=type(request).SerializeToString, response_deserializer=response_type.FromString
    )
    return method(request, metadata=(("authorization", f"Bearer {token}"),) if token else (), timeout=5)


def test_grpc_clients_use_the_same_gateway(hotel: Hotel, guest: Client, channel: Any) -> None:
    """Public RPCs work without a token, others with one."""
    order = hotel.order(guest)
    hotel.page_with(order["id"], reservationStatus="RECEIVED")

    rooms = call(channel, "/gotohotel.order.v1.OrderService/SearchRooms", SearchRoomsRequest(), SearchRoomsResponse)
    page = call(
        channel,
        "/gotohotel.mypage.v1.MyPageService/GetMyPage",
        GetMyPageRequest(order_id=order["id"]),
        MyPage,
        guest.token,
    )

    assert len(rooms.rooms) >= 5
    assert page.order_id == order["id"]


@pytest.mark.parametrize(
    "path",
    sorted({each.path for rpc in public_rpcs(SERVICES) for each in rpc.bindings if each.verb == "post"}),
)
def test_grpc_at_a_json_path_is_refused(guest: Client, channel: Any, path: str) -> None:
    """It has a route of its own, but no service has anything there."""
    with pytest.raises(grpc.RpcError) as refusal:
        call(channel, re.sub(r"{\w+}", "x", path), SearchRoomsRequest(), SearchRoomsResponse, guest.token)

    assert refusal.value.code() == grpc.StatusCode.NOT_FOUND
    metadata: Any = refusal.value.trailing_metadata()
    assert b"NO_SUCH_PATH" in dict(metadata)["grpc-status-details-bin"]


@pytest.mark.parametrize("name", ["CancelPayment", "ProcessPayment", "ClosePayment", "CheckAvailability"])
def test_internal_calls_cannot_be_reached(hotel: Hotel, guest: Client, channel: Any, name: str) -> None:
    """The gateway refuses internal RPCs as gRPC and as JSON, even from the desk."""
    order = hotel.order(guest)
    path = f"/gotohotel.pay.v1.PayService/{name}"

    with pytest.raises(grpc.RpcError) as error:
        call(channel, path, CancelPaymentRequest(order_id=order["id"]), Payment, hotel.desk.token)

    assert error.value.code() in (grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.NOT_FOUND)
    assert hotel.desk.request("POST", path, json={"orderId": order["id"]}).status_code == 415
    assert guest.get(f"/payments/{order['id']}")["status"] == "APPROVED"


def test_grpc_over_http_1_is_refused(guest: Client) -> None:
    """The gateway refuses such calls, because they would count as failures of healthy services."""
    answer = guest.request(
        "POST",
        "/gotohotel.order.v1.OrderService/ListOrders",
        content=b"\x00\x00\x00\x00\x00",
        headers={"content-type": "application/grpc", "te": "trailers"},
    )

    assert answer.headers["grpc-status"] == "3"
    assert "HTTP/2" in answer.headers["grpc-message"]


def test_health_and_reflection_are_on_every_service(hotel: Hotel) -> None:
    """Operators can use health checks and reflection on the services' own ports."""
    from grpc_health.v1 import health_pb2, health_pb2_grpc
    from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

    for port, service in (
        ("order", "gotohotel.order.v1.OrderService"),
        ("pay", "gotohotel.pay.v1.PayService"),
        ("reservation", "gotohotel.reservation.v1.ReservationService"),
        ("mypage", "gotohotel.mypage.v1.MyPageService"),
    ):
        with grpc_channel(hotel.stack, port) as channel:
            check = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=service))
            request = reflection_pb2.ServerReflectionRequest(list_services="")
            listed = next(reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter([request])))
            newer: Any = channel.stream_stream(
                "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
                request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
                response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
            )
            assert next(newer(iter([request]))).list_services_response == listed.list_services_response
        assert check.status == health_pb2.HealthCheckResponse.SERVING
        assert service in {entry.name for entry in listed.list_services_response.service}


def test_the_gateways_health_needs_no_token(hotel: Hotel) -> None:
    """A load balancer has no token."""
    assert httpx.get(f"{hotel.stack.gateway_url}/healthz").json() == {"status": "SERVING"}


def test_who_asks_too_often_is_turned_away_and_nobody_else(hotel: Hotel, tmp_path: Path) -> None:
    """Each subject has its own rate limit: over it, a call gets 429 with the time to wait. Others are not affected."""
    greedy, modest = ({"Authorization": f"Bearer {hotel.caller().token}"} for _ in range(2))

    with strict_gateway(hotel, tmp_path, burst=20) as url, httpx.Client(base_url=url, timeout=20) as client:
        answers = [client.get("/orders", headers=greedy) for _ in range(40)]
        other = client.get("/orders", headers=modest)

    assert {answer.status_code for answer in answers[:20]} == {200}
    assert answers[-1].status_code == 429
    assert answers[-1].json()["details"] == [
        {
            "@type": "type.googleapis.com/google.rpc.ErrorInfo",
            "reason": "RATE_LIMITED",
            "domain": "gotohotel",
            "metadata": {"retryable": "true"},
        },
        {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "1s"},
    ]
    assert other.status_code == 200


@contextmanager
def strict_gateway(hotel: Hotel, folder: Path, *, burst: int) -> Iterator[str]:
    """A second gateway to the same services, which allows each subject `burst` calls and then one per second."""
    bucket = r"(entries: \[{key: subject}\]\s+token_bucket: {max_tokens: )\d+(, tokens_per_fill: )\d+"
    with another_gateway(hotel.stack, folder, Change(bucket, rf"\g<1>{burst}\g<2>1")) as twin:
        yield twin.gateway_url


def test_a_misspelt_setting_is_not_passed_over(hotel: Hotel, tmp_path: Path) -> None:
    """Envoy ignores unknown fields of files that it reads later, by default: the limit would not be there."""
    misspelt = Change("max_request_body_size: ", "max_request_body_sise: ")
    with another_gateway(hotel.stack, tmp_path, misspelt) as twin:
        assert httpx.get(f"{twin.gateway_url}/rooms").status_code == 404  # it has no routes at all
