"""The main use cases, over HTTP through the gateway."""

import asyncio
import json
from datetime import date, datetime, timedelta
from functools import partial
from typing import Any
from zoneinfo import ZoneInfo

import asyncpg
import pytest

from tests.conftest import Client, Hotel, wait_for

LOST_ANSWER, ERROR, DECLINED = "4000000000000259", "4000000000000119", "4000000000000002"


def query(hotel: Hotel, database: str, statement: str, *arguments: Any) -> Any:
    """Executes a statement in a service's database; returns one value."""

    async def fetch() -> Any:
        connection = await asyncpg.connect(hotel.stack.database_url(database, "postgres"))
        try:
            return await connection.fetchval(statement, *arguments)
        finally:
            await connection.close()

    return asyncio.run(fetch())


def test_the_originals_three_calls(hotel: Hotel, guest: Client) -> None:
    """POST /orders without a card, POST /payments, GET /mypages/{orderId}; without dates the stay is tonight."""
    order = guest.post("/orders", {"name": "Guest4", "roomType": "Prime", "guestCnt": 4})

    today = datetime.now(ZoneInfo("Asia/Seoul")).date()
    assert order["status"] == "PAYMENT_PENDING"
    assert (order["checkIn"], order["checkOut"]) == (today.isoformat(), (today + timedelta(days=1)).isoformat())
    assert order["amount"] == {"currencyCode": "KRW", "units": "240000", "nanos": 0}

    paid = guest.post("/payments", {"orderId": order["id"], "cardNo": "4242-4242-4242-4242"})
    assert paid["status"] == "PAID"
    assert guest.get(f"/orders/{order['id']}")["status"] == "PAID"

    def timeline() -> list[str]:
        return [entry["event"] for entry in hotel.page_with(order["id"])["timeline"]]

    # The events come from several services, and in any order.
    wait_for(lambda: timeline() == ["Ordered", "PaymentApproved", "ReservationTaken"])
    page = guest.get(f"/mypages/{order['id']}")
    assert (page["status"], page["paymentStatus"], page["reservationStatus"]) == ("PAID", "APPROVED", "RECEIVED")


def test_a_booking_is_confirmed_and_canceled_with_its_refund(hotel: Hotel, guest: Client) -> None:
    """The cancel frees the room and refunds the payment, and every service shows it."""
    stay = hotel.stay(nights=3)
    free = hotel.available("Prime", stay)
    order = hotel.order(guest, roomType="Prime", **stay)
    hotel.reservation_with(order["id"], status="RECEIVED")
    assert hotel.available("Prime", stay) == free - 1

    confirmed = hotel.desk.post(f"/reservations/{order['id']}:confirm")
    again = hotel.desk.post(f"/reservations/{order['id']}:confirm")
    assert confirmed["confirmationNo"]
    assert again == confirmed
    assert hotel.order_with(order["id"], status="CONFIRMED")["confirmationNo"] == confirmed["confirmationNo"]

    canceling = guest.request("DELETE", f"/orders/{order['id']}").raise_for_status().json()
    assert canceling["status"] in ("CANCELING", "CANCELED")
    assert hotel.available("Prime", stay) == free
    canceled = hotel.order_with(order["id"], status="CANCELED")
    assert canceled["refundedAmount"] == order["amount"]
    hotel.page_with(order["id"], status="CANCELED", paymentStatus="CANCELED", reservationStatus="CANCELED")
    assert guest.get(f"/payments/{order['id']}")["refundedAmount"] == order["amount"]


def test_an_unpaid_order_never_reaches_the_desk(hotel: Hotel, guest: Client) -> None:
    """The desk receives it neither while it is unpaid nor when it is canceled."""
    order = hotel.order(guest, card=None)
    guest.post(f"/orders/{order['id']}:cancel", {"reason": "changed my mind"})

    hotel.order_with(order["id"], status="CANCELED")
    hotel.page_with(order["id"], status="CANCELED")

    assert hotel.desk.request("GET", f"/reservations/{order['id']}").status_code == 404
    refused = guest.request("POST", "/payments", json={"orderId": order["id"], "cardNo": "4242424242424242"})
    assert refused.status_code == 400
    assert refused.json()["details"][0]["reason"] == "ORDER_NOT_PAYABLE"


def refunded(hotel: Hotel, order: dict[str, Any]) -> bool:
    """Whether the order shows that all of it was given back."""
    return bool(hotel.order_with(order["id"])["refundedAmount"] == order["amount"])


def test_the_desk_rejects_and_cancels(hotel: Hotel, guest: Client) -> None:
    """Both refund the payment. A confirmed reservation can be canceled, but not rejected."""
    rejected, canceled = hotel.order(guest), hotel.order(guest)
    for order in (rejected, canceled):
        hotel.reservation_with(order["id"], status="RECEIVED")
    hotel.desk.post(f"/reservations/{canceled['id']}:confirm")

    refused = hotel.desk.request("POST", f"/reservations/{canceled['id']}:reject", json={})
    assert refused.status_code == 400
    answer = hotel.desk.post(f"/reservations/{rejected['id']}:reject", {"reason": "full"})
    assert (answer["status"], answer["reason"]) == ("REJECTED", "full")
    assert hotel.desk.post(f"/reservations/{canceled['id']}:cancel", {"reason": "fire"})["status"] == "CANCELED"

    for order, status in ((rejected, "REJECTED"), (canceled, "CANCELED")):
        hotel.order_with(order["id"], status=status)
        # The desk's event may arrive before pay_svc's, which has the amount.
        wait_for(partial(refunded, hotel, order))
    assert guest.request("DELETE", f"/orders/{rejected['id']}").status_code == 400


def test_a_declined_card_is_paid_later_with_another(hotel: Hotel, guest: Client) -> None:
    """The order stands and shows why it is not paid. Another card pays it once."""
    order = hotel.order(guest, card=DECLINED)
    assert order["status"] == "PAYMENT_PENDING"
    assert order["paymentError"]["reason"] == "CARD_DECLINED"
    assert "retryAfter" not in order["paymentError"]

    paid = guest.post(f"/orders/{order['id']}:pay", {"cardNo": "4242424242424242"})
    again = guest.post(f"/orders/{order['id']}:pay", {"cardNo": "4242424242424242"})

    assert (paid["status"], again["status"]) == ("PAID", "PAID")
    assert "paymentError" not in paid
    assert query(hotel, "sandbox", CHARGES, order["id"]) == 1


CHARGES = "SELECT count(*) FROM ledger WHERE order_id = $1 AND outcome = 'CHARGED'"


def test_a_lost_answer_of_the_processor_charges_once(hotel: Hotel, guest: Client) -> None:
    """The order is PAID, and the ledger has one charge."""
    order = hotel.order(guest, card=LOST_ANSWER)

    assert order["status"] == "PAID"
    assert query(hotel, "sandbox", CHARGES, order["id"]) == 1


def test_a_processor_that_fails_leaves_the_order_to_be_paid_later(hotel: Hotel, guest: Client) -> None:
    """The order shows the reason and the time after which to retry."""
    order = hotel.order(guest, card=ERROR)

    assert order["paymentError"]["reason"] == "PAYMENT_UNAVAILABLE"
    assert order["paymentError"]["retryAfter"] == "5s"


def test_an_order_that_is_not_paid_in_time_expires(hotel: Hotel, guest: Client) -> None:
    """Its nights are free again, and it can no longer be paid."""
    stay = hotel.stay()
    free = hotel.available("delux", stay)
    order = hotel.order(guest, card=None, roomType="delux", **stay)
    overdue = "UPDATE orders SET expires_at = now() - interval '1 second' WHERE id = $1"

    query(hotel, "order_svc", overdue, order["id"])

    hotel.order_with(order["id"], status="EXPIRED")
    hotel.page_with(order["id"], status="EXPIRED", paymentStatus="CANCELED")
    assert hotel.available("delux", stay) == free
    pay = guest.request("POST", "/payments", json={"orderId": order["id"], "cardNo": "4242424242424242"})
    assert pay.status_code == 400


def test_lists_come_in_pages_newest_first(hotel: Hotel, guest: Client) -> None:
    """This holds for every paged list; a guest sees only her own entries."""
    orders = [hotel.order(guest)["id"] for _ in range(3)]
    for order_id in orders:
        hotel.page_with(order_id, reservationStatus="RECEIVED")

    for path, name, key in (("/orders", "orders", "id"), ("/payments", "payments", "orderId"), *MORE_LISTS):
        first = guest.get(f"{path}?pageSize=2")
        second = guest.get(f"{path}?pageSize=2&pageToken={first['nextPageToken']}")
        assert [thing[key] for thing in first[name] + second[name]] == orders[::-1]
        assert second["nextPageToken"] == ""
    received = hotel.desk.get("/reservations?status=RECEIVED&pageSize=3")["reservations"]
    assert [reservation["orderId"] for reservation in received] == orders[::-1]


MORE_LISTS = (("/mypages", "mypages", "orderId"),)


def test_a_capacity_lowered_below_what_is_sold_closes_the_night(hotel: Hotel, guest: Client) -> None:
    """Sold rooms stay sold, and the night has no free room."""
    room_type, stay = hotel.room_type(capacity=2), hotel.stay()
    orders = [hotel.order(guest, roomType=room_type, **stay) for _ in range(2)]

    hotel.set_capacity(room_type, 1)
    wait_for(lambda: hotel.available(room_type, hotel.stay()) == 1)

    assert hotel.available(room_type, stay) == 0
    assert [hotel.order_with(order["id"])["status"] for order in orders] == ["PAID", "PAID"]


def test_rooms_too_small_are_not_offered(hotel: Hotel) -> None:
    """SearchRooms filters by the number of guests."""
    night = (date.today() + timedelta(days=2)).isoformat()  # noqa: DTZ011 - any night will do
    rooms = hotel.search({"checkIn": night, "guestCnt": "4"})

    assert {"Prime", "childRoom"} <= {room["roomType"] for room in rooms}
    assert "Normal" not in {room["roomType"] for room in rooms}


DECLINED = "4000000000000002"
YESTERDAY = "UPDATE orders SET check_in = check_in - 400, check_out = check_out - 400 WHERE id = $1"
AS_BEFORE = "UPDATE orders SET check_in = check_in + 400, check_out = check_out + 400 WHERE id = $1"


def test_a_guest_who_tries_out_cards_is_stopped(hotel: Hotel, guest: Client) -> None:
    """After five declines of an order: 429 with the time to wait. The order stays as it is and says why."""
    order = hotel.order(guest, card=DECLINED)
    for _ in range(4):
        assert (
            guest.post(f"/orders/{order['id']}:pay", {"cardNo": DECLINED})["paymentError"]["reason"] == "CARD_DECLINED"
        )

    refused = guest.request("POST", f"/orders/{order['id']}:pay", json={"cardNo": "4242424242424242"})

    assert refused.status_code == 429
    assert refused.json()["details"][0]["reason"] == "TOO_MANY_ATTEMPTS"
    assert refused.json()["details"][1]["retryDelay"] == "3600s"
    assert refused.headers["retry-after"] == "3600"
    unpaid = guest.get(f"/orders/{order['id']}")
    assert (unpaid["status"], unpaid["paymentError"]["reason"]) == ("PAYMENT_PENDING", "TOO_MANY_ATTEMPTS")


def test_a_guest_with_three_unpaid_orders_books_no_fourth(hotel: Hotel, guest: Client) -> None:
    """429 with the time to wait; after a payment she may book again. Another guest is not affected."""
    orders = [hotel.order(guest, card=None) for _ in range(3)]

    refused = guest.request("POST", "/orders", json=hotel.booking())
    hotel.order(hotel.caller(), card=None)
    guest.post(f"/orders/{orders[0]['id']}:pay", {"cardNo": "4242424242424242"})

    assert refused.status_code == 429
    assert refused.json()["details"][0]["reason"] == "TOO_MANY_UNPAID"
    assert int(refused.headers["retry-after"]) > 0
    assert hotel.order(guest, card=None)["status"] == "PAYMENT_PENDING"


def test_a_guest_cannot_cancel_a_stay_that_has_begun(hotel: Hotel, guest: Client) -> None:
    """The day after check-in it is the desk's decision; a booking for tonight can be canceled today."""
    tonight = guest.post("/orders", {"name": "Guest", "roomType": hotel.room_type(5), "cardNo": "4242424242424242"})
    begun = hotel.order(guest)
    query(hotel, "order_svc", YESTERDAY, begun["id"])

    refused = guest.request("POST", f"/orders/{begun['id']}:cancel", json={})

    assert refused.status_code == 400
    assert refused.json()["details"][0]["reason"] == "STAY_BEGUN"
    assert guest.post(f"/orders/{tonight['id']}:cancel")["status"] in ("CANCELING", "CANCELED")
    query(hotel, "order_svc", AS_BEFORE, begun["id"])


@pytest.mark.parametrize("who", ["guest", "desk"])
def test_who_canceled_is_kept(hotel: Hotel, guest: Client, who: str) -> None:
    """In the timeline, in the rows and in the events: a desk's cancel is told apart from the guest's."""
    order = hotel.order(guest)
    hotel.reservation_with(order["id"], status="RECEIVED")
    caller = guest if who == "guest" else hotel.desk
    caller.post(f"/orders/{order['id']}:cancel", {"reason": "plans"})
    page = hotel.page_with(order["id"], status="CANCELED", reservationStatus="CANCELED", paymentStatus="CANCELED")

    roles = {entry["event"]: entry["actorRole"] for entry in page["timeline"]}
    assert roles == {
        "Ordered": "GUEST",
        "PaymentApproved": "GUEST",
        "ReservationTaken": "SYSTEM",
        "OrderCanceled": who.upper(),
        "PaymentCanceled": who.upper(),
        "ReservationCanceled": who.upper(),
    }
    actor = {"role": who.upper(), "subject": caller.subject}
    for database, column, key in (
        ("order_svc", "canceled_by", "id"), ("pay_svc", "canceled_by", "order_id"),
        ("reservation_svc", "ending_by", "order_id"),
    ):  # fmt: skip
        table = {"order_svc": "orders", "pay_svc": "payments", "reservation_svc": "reservations"}[database]
        stored = query(hotel, database, f"SELECT {column} FROM {table} WHERE {key} = $1", order["id"])
        assert json.loads(stored) == actor


def test_who_confirmed_is_kept(hotel: Hotel, guest: Client) -> None:
    """The row has the desk's subject; My page shows the role only."""
    order = hotel.order(guest)
    hotel.reservation_with(order["id"], status="RECEIVED")
    hotel.desk.post(f"/reservations/{order['id']}:confirm")
    page = hotel.page_with(order["id"], status="CONFIRMED")

    assert [e["actorRole"] for e in page["timeline"] if e["event"] == "ReservationConfirmed"] == ["DESK"]
    assert hotel.desk.subject not in json.dumps(page)
    stored = query(hotel, "reservation_svc", "SELECT confirmed_by FROM reservations WHERE order_id = $1", order["id"])
    assert json.loads(stored) == {"role": "DESK", "subject": hotel.desk.subject}
