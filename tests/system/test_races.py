"""Many callers at once, through the gateway."""

import uuid
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx

from tests.conftest import Client, Hotel
from tests.system.test_journey import CHARGES, query


def at_once(count: int, call: Any) -> list[httpx.Response]:
    """Starts this many calls together and returns their responses."""
    with ThreadPoolExecutor(max_workers=count) as pool:
        return list(pool.map(call, range(count)))


def test_fifty_orders_for_one_room(hotel: Hotel) -> None:
    """Exactly one order gets it; the other 49 get SOLD_OUT and are not charged."""
    room_type, stay = hotel.room_type(capacity=1), hotel.stay()
    guests = [hotel.caller() for _ in range(50)]

    answers = at_once(
        50, lambda n: guests[n].request("POST", "/orders", json=hotel.booking(roomType=room_type, **stay))
    )

    assert Counter(answer.status_code for answer in answers) == {200: 1, 409: 49}
    refusals = [answer.json() for answer in answers if answer.status_code == 409]
    assert {refusal["details"][0]["reason"] for refusal in refusals} == {"SOLD_OUT"}
    winner = next(answer.json() for answer in answers if answer.status_code == 200)
    assert winner["status"] == "PAID"
    assert hotel.available(room_type, stay) == 0
    owners = [guest.subject for guest in guests]
    assert query(hotel, "pay_svc", "SELECT count(*) FROM payments WHERE owner = ANY($1)", owners) == 1


def test_the_same_request_fifty_times_at_once(hotel: Hotel, guest: Client) -> None:
    """There is one order, one charge and fifty equal answers. Another body is refused; another guest may use the id."""
    body = {**hotel.booking(), "requestId": str(uuid.uuid4())}

    same = [hotel.caller(subject=guest.subject) for _ in range(50)]  # one client for each thread
    answers = at_once(50, lambda n: same[n].request("POST", "/orders", json=body))

    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.content for answer in answers}) == 1
    order = answers[0].json()
    assert [order["id"]] == [mine["id"] for mine in guest.get("/orders")["orders"]]
    assert query(hotel, "sandbox", CHARGES, order["id"]) == 1
    another = guest.request("POST", "/orders", json={**body, "name": "Somebody else"})
    assert another.status_code == 409
    assert another.json()["details"][0]["reason"] == "REQUEST_ID_REUSED"
    assert hotel.caller().post("/orders", body)["id"] != order["id"]


def test_a_request_that_took_the_last_room_can_be_repeated(hotel: Hotel, guest: Client) -> None:
    """During the first call and after it, a repeated request returns the order, not SOLD_OUT."""
    room_type, stay = hotel.room_type(capacity=1), hotel.stay()
    body = {**hotel.booking(roomType=room_type, **stay), "requestId": "last-room"}
    same = [hotel.caller(subject=guest.subject) for _ in range(10)]

    answers = at_once(10, lambda n: same[n].request("POST", "/orders", json=body))
    later = guest.request("POST", "/orders", json=body)
    another = guest.request("POST", "/orders", json={**body, "name": "Somebody else"})

    assert {answer.status_code for answer in (*answers, later)} == {200}
    assert {answer.content for answer in answers} == {later.content}
    assert another.json()["details"][0]["reason"] == "REQUEST_ID_REUSED"


def test_every_mutation_can_be_repeated_by_its_request_id(hotel: Hotel, guest: Client) -> None:
    """A repeated call returns the first answer, even if the state has changed since."""
    order = hotel.order(guest, card=None)
    pay = {"cardNo": "4242424242424242", "requestId": "pay"}
    paid = guest.post(f"/orders/{order['id']}:pay", pay)
    hotel.reservation_with(order["id"], status="RECEIVED")
    confirmed = hotel.desk.post(f"/reservations/{order['id']}:confirm", {"requestId": order["id"]})
    canceled = guest.post(f"/orders/{order['id']}:cancel", {"requestId": "cancel"})
    hotel.order_with(order["id"], status="CANCELED")

    assert guest.post(f"/orders/{order['id']}:pay", pay) == paid
    assert hotel.desk.post(f"/reservations/{order['id']}:confirm", {"requestId": order["id"]}) == confirmed
    assert guest.post(f"/orders/{order['id']}:cancel", {"requestId": "cancel"}) == canceled


def test_confirm_cancel_and_reject_at_once(hotel: Hotel, guest: Client) -> None:
    """At least one call succeeds and the others get 400 or 409; the refund matches the final state."""
    desks = [hotel.caller(role="desk") for _ in range(3)]
    for _ in range(5):
        order = hotel.order(guest)
        hotel.reservation_with(order["id"], status="RECEIVED")
        paths = [f"/reservations/{order['id']}:{act}" for act in ("confirm", "cancel", "reject")]

        answers = at_once(3, lambda n, paths=paths: desks[n].request("POST", paths[n], json={}))

        statuses = [answer.status_code for answer in answers]
        assert set(statuses) <= {200, 400, 409}
        assert 200 in statuses
        if 200 in statuses[1:]:
            ended = "CANCELED" if statuses[1] == 200 else "REJECTED"
            assert hotel.order_with(order["id"], status=ended)["refundedAmount"] == order["amount"]
        else:
            assert hotel.order_with(order["id"], status="CONFIRMED")


def test_pay_and_cancel_at_once(hotel: Hotel, guest: Client) -> None:
    """Whichever call is first, a canceled order has no charge in the end."""
    twins = [hotel.caller(subject=guest.subject) for _ in range(2)]
    for _ in range(5):
        order = hotel.order(guest, card=None)
        calls: list[Any] = [
            ("DELETE", f"/orders/{order['id']}", None),
            ("POST", "/payments", {"orderId": order["id"], "cardNo": "4242424242424242"}),
        ]

        at_once(2, lambda n, calls=calls: twins[n].request(*calls[n][:2], json=calls[n][2]))

        guest.request("DELETE", f"/orders/{order['id']}").raise_for_status()
        hotel.order_with(order["id"], status="CANCELED")
        standing = "SELECT count(*) FROM ledger WHERE order_id = $1 AND outcome = 'CHARGED' AND refunded_at IS NULL"
        assert query(hotel, "sandbox", standing, order["id"]) == 0


def test_the_header_idempotency_key_is_a_request_id(hotel: Hotel, guest: Client) -> None:
    """It repeats the answer, also of a call without a body, and of one that gave the id in its body."""
    body, key = hotel.booking(), {"Idempotency-Key": str(uuid.uuid4())}
    order = guest.request("POST", "/orders", json=body, headers=key).json()

    again = guest.request("POST", "/orders", json=body, headers=key)
    in_body = guest.request("POST", "/orders", json={**body, "requestId": key["Idempotency-Key"]})
    other_body = guest.request("POST", "/orders", json={**body, "name": "Somebody else"}, headers=key)
    both = guest.request("POST", "/orders", json={**body, "requestId": "another"}, headers=key)
    canceled = [guest.request("DELETE", f"/orders/{order['id']}", headers=key).json() for _ in range(2)]

    assert (again.json(), in_body.json()) == (order, order)
    assert other_body.json()["details"][0]["reason"] == "REQUEST_ID_REUSED"
    assert both.json()["details"][1]["fieldViolations"][0]["field"] == "requestId"
    assert canceled[0] == canceled[1]
    assert [mine["id"] for mine in guest.get("/orders")["orders"]] == [order["id"]]
