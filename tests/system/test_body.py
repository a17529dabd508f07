"""JSON bodies are compared with the contract before any service sees them: what is misspelled books nothing."""

import json
from typing import Any

import pytest

from tests.conftest import GOOD_CARD, Client, Hotel

UNKNOWN = [
    ({"checkin": "2030-01-01"}, "checkin"),
    ({"guestCount": 2}, "guestCount"),
    ({"CheckIn": "2030-01-01"}, "CheckIn"),
    ({"check_In": "2030-01-01"}, "check_In"),
    ({"cardno": GOOD_CARD}, "cardno"),
    ({"": 1}, None),
    ({"check In": 1}, None),
    ({GOOD_CARD: 1}, None),
    ({"x" * 65: 1}, None),
]


@pytest.mark.parametrize(("extra", "field"), UNKNOWN)
def test_an_unknown_field_is_refused_by_its_name(
    hotel: Hotel, guest: Client, extra: dict[str, Any], field: str | None
) -> None:
    """Nothing is booked. A name that may be anything, even a card number, is not repeated."""
    answer = guest.request("POST", "/orders", json={**hotel.booking(), **extra})

    error = answer.json()
    assert answer.status_code == 400
    assert error["details"][0]["reason"] == "UNKNOWN_FIELD"
    assert (
        [each["field"] for each in error["details"][1]["fieldViolations"]] == [field]
        if field
        else not error["details"][1:]
    )
    assert GOOD_CARD not in answer.text
    assert guest.get("/orders")["orders"] == []


def test_an_unknown_field_of_a_message_inside_is_refused(hotel: Hotel) -> None:
    """Its name is the whole path."""
    rate = {"currencyCode": "KRW", "units": "1000", "cents": 5}

    answer = hotel.desk.request("PUT", "/roomTypes/Odd", json={"capacity": 1, "maxGuests": 2, "nightlyRate": rate})

    assert answer.status_code == 400
    assert answer.json()["details"][1]["fieldViolations"][0]["field"] == "nightlyRate.cents"


def test_both_spellings_of_the_protos_are_known(hotel: Hotel, guest: Client) -> None:
    """camelCase and snake_case, as protobuf's JSON has it."""
    stay = hotel.stay()
    body = {
        "name": "A",
        "room_type": "Normal",
        "guestCnt": 2,
        "check_in": stay["checkIn"],
        "checkOut": stay["checkOut"],
    }

    assert guest.post("/orders", body)["checkIn"] == stay["checkIn"]


NOT_ACCEPTED = [
    '{"name": "A", "name": "B", "roomType": "Normal"}',
    '{"name": "A", "room_type": "Prime", "roomType": "Normal"}',
    '{"name": "A", "roomType": "Normal",}',
    '{"name": "A", "roomType": "Normal", "guestCnt": NaN}',
    '{"name": "A", "roomType": "Normal", "guestCnt": Infinity}',
    '{"name": "A", "roomType": "Normal", "guestCnt": 01}',
    '{"name": "A", "roomType": "Normal", "guestCnt": +1}',
    '{"name": "A", "roomType": "Normal", "guestCnt": 1.}',
    "{'name': 'A', 'roomType': 'Normal'}",
    '{name: "A", roomType: "Normal"}',
    '{"name": "A" "roomType": "Normal"}',
    '{"name": "A\nB", "roomType": "Normal"}',
    '{"name": "A\\x41", "roomType": "Normal"}',
    '{"name": "A", "roomType": "Normal"} {}',
    '{"name": "A", "roomType": "Normal"',
    '{"name": "A", "roomType": "Normal" /* tonight */}',
    '[{"name": "A", "roomType": "Normal"}]',
    '"name"',
    "null",
    '\ufeff{"name": "A", "roomType": "Normal"}',
    '{"n\\u0061me": "A", "roomType": "Normal"}',
    '{"name": ' + "[" * 40 + "]" * 40 + "}",
    "name=A&roomType=Normal",
]


@pytest.mark.parametrize("body", NOT_ACCEPTED)
def test_what_is_almost_json_is_refused(guest: Client, body: str) -> None:
    """Parsers differ in what they make of it; here it is an error, and nothing is booked."""
    answer = guest.request("POST", "/orders", content=body.encode())

    assert answer.status_code == 400
    assert answer.json()["details"][0]["reason"] in ("INVALID_ARGUMENT", "UNKNOWN_FIELD")
    assert guest.get("/orders")["orders"] == []


def test_unusual_json_is_accepted(hotel: Hotel, guest: Client) -> None:
    """White space, escapes, null for a field that is left out, and a number in exponent form."""
    body = json.dumps({**hotel.booking(), "phoneNo": None, "name": '\ud55c"\\/\u0041'}, indent=2)
    written = body.replace('"guestCnt": 2', '"guestCnt" \t:\r\n 2e0')
    assert written != body

    assert guest.request("POST", "/orders", content=written.encode()).json()["name"] == '한"\\/A'


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/orders?cardNo=4242424242424242"), ("POST", "/orders?name=A"), ("POST", "/payments?pageSize=1")],
)
def test_a_call_with_a_body_has_no_query(guest: Client, method: str, path: str) -> None:
    """A card number in a URL ends in other people's logs; the answer does not repeat it."""
    answer = guest.request(method, path, json={"name": "A", "roomType": "Normal"})

    assert answer.status_code == 400
    assert answer.json()["message"] == "this call has no query parameters"
    assert GOOD_CARD not in answer.text


def test_a_call_without_a_body_takes_none(hotel: Hotel, guest: Client) -> None:
    """A reason in a DELETE's body would be lost without a word. An empty object is no body."""
    order = hotel.order(guest, card=None)

    refused = guest.request("DELETE", f"/orders/{order['id']}", json={"reason": "ill"})
    searched = guest.request("GET", "/rooms", content=b'{"checkIn": "2030-01-01"}')
    accepted = guest.request("DELETE", f"/orders/{order['id']}", json={})

    assert (refused.status_code, searched.status_code, accepted.status_code) == (400, 400, 200)
    assert refused.json()["message"] == "this call has no body"


@pytest.mark.parametrize(
    "path", ["/orders/", "/orders/?name=B", "/payments/", "/orders/ID:pay/", "/orders/urn:uuid:ID:pay"]
)
def test_no_other_spelling_of_a_path_gets_past_the_check(hotel: Hotel, guest: Client, path: str) -> None:
    """The transcoder finds calls at more paths than the contract has, such as one with a slash more."""
    order = hotel.order(guest, card=None)
    body = {**hotel.booking(), "checkin": "2030-01-01"} if path.startswith("/orders/") else {"orderId": order["id"]}

    answer = guest.request("POST", path.replace("ID", order["id"]), json={**body, "cardNo": GOOD_CARD, "unknown": 1})

    assert answer.status_code == 404
    assert answer.json()["details"][0]["reason"] == "NO_SUCH_PATH"
    assert [each["id"] for each in guest.get("/orders")["orders"]] == [order["id"]]
    assert hotel.order_with(order["id"])["status"] == "PAYMENT_PENDING"


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("application/grpc-web", 400),  # gRPC from a browser, which is a POST
        ("application/grpc-web-text", 400),  # the body is not base64
        ("application/grpcX", 415),
        ("application/grpc;x", 415),
        ("application/grpc-web+json", 415),
        ("application/grpc-webX", 415),
    ],
)
def test_a_json_call_cannot_pass_for_grpc(hotel: Hotel, guest: Client, kind: str, status: int) -> None:
    """It would pass the checks of JSON as gRPC, and be transcoded as JSON."""
    mine, other = hotel.order(guest, card=None), hotel.order(guest, card=None)

    answer = guest.request(
        "DELETE", f"/orders/{mine['id']}?orderId={other['id']}", content=b"\0" * 5, headers={"content-type": kind}
    )

    assert answer.status_code == status
    for order in (mine, other):
        assert hotel.order_with(order["id"])["status"] == "PAYMENT_PENDING"


def test_an_id_of_the_path_may_be_repeated_or_null_in_the_body(hotel: Hotel, guest: Client) -> None:
    """Some clients send every field."""
    order = hotel.order(guest, card=None)

    answers = [
        guest.request("POST", f"/orders/{order['id']}:cancel", json=body)
        for body in ({"orderId": None}, {"orderId": order["id"]})
    ]

    assert [answer.status_code for answer in answers] == [200, 200]
