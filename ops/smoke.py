"""Whether a hotel works: books a room through the gateway, follows it on My page, and cancels it."""

import time
import uuid
from datetime import date, timedelta
from typing import Any

import httpx

from ops.addresses import Addresses
from ops.errors import StackError
from ops.supervision import wait_until

CARD = "4242424242424242"  # the sandbox processor takes it; a real one refuses it, and moves no money
NIGHTS_AHEAD = 30
PATIENCE_SECONDS = 60
MAY_PASS = ("PAYMENT_IN_PROGRESS", "PAYMENT_UNAVAILABLE")


def book_and_cancel(addresses: Addresses) -> str:
    """Returns the id of the order, which is canceled and refunded in the end. Raises StackError saying what failed."""
    night = date.today() + timedelta(days=NIGHTS_AHEAD)  # noqa: DTZ011 - any night will do
    stay = {"checkIn": night.isoformat(), "checkOut": (night + timedelta(days=1)).isoformat()}
    headers = {"Authorization": f"Bearer {addresses.token(subject=f'smoke-{uuid.uuid4()}', role='guest')}"}
    try:
        verify = addresses.checks_gateway
        with httpx.Client(base_url=addresses.gateway_url, headers=headers, timeout=10, verify=verify) as guest:
            wait_until(
                lambda: bool(_free_room_types(guest, stay)),
                f"No room is free on {night}: there is nothing to book",
                seconds=PATIENCE_SECONDS,
            )
            booking = {
                "name": "Smoke test",
                "roomType": _free_room_types(guest, stay)[0],
                "guestCnt": 1,
                **stay,
                "cardNo": CARD,
            }
            key = {"Idempotency-Key": str(uuid.uuid4())}
            order = guest.post("/orders", json=booking, headers=key).raise_for_status().json()
            try:
                order = _paid(guest, order)
                _wait_for_page(guest, order["id"], "PAID")
            finally:
                guest.post(f"/orders/{order['id']}:cancel", json={"reason": "smoke test"}).raise_for_status()
            _wait_for_page(guest, order["id"], "CANCELED")
            payment = guest.get(f"/payments/{order['id']}").raise_for_status().json()
            if payment["refundedAmount"] != payment["amount"]:
                raise StackError(f"The payment was canceled, but {payment['refundedAmount']} of it was refunded.")
    except httpx.HTTPStatusError as error:
        raise StackError(f"{error.request.method} {error.request.url.path}: {error.response.text}") from None
    except httpx.HTTPError as error:
        raise StackError(f"The gateway at {addresses.gateway_url} does not answer: {error!r}") from None
    return str(order["id"])


def _free_room_types(guest: httpx.Client, stay: dict[str, str]) -> list[str]:
    rooms = guest.get("/rooms", params=stay).raise_for_status().json()["rooms"]
    return [room["roomType"] for room in rooms if int(room["available"])]


def _paid(guest: httpx.Client, order: dict[str, Any]) -> dict[str, Any]:
    """The order, paid. A payment that is still in progress, or could not be tried, is repeated when its answer says so.

    Raises StackError if it is declined, or not paid in time.
    """
    ends = time.monotonic() + PATIENCE_SECONDS
    while order["status"] == "PAYMENT_PENDING" and time.monotonic() < ends:
        error = order.get("paymentError", {"reason": "PAYMENT_IN_PROGRESS"})
        if error["reason"] not in MAY_PASS:
            break
        time.sleep(float(error.get("retryAfter", "1s").rstrip("s")))
        order = guest.post(f"/orders/{order['id']}:pay", json={"cardNo": CARD}).raise_for_status().json()
    if order["status"] != "PAID":
        raise StackError(f"The order is {order['status']}, not PAID: {order.get('paymentError')}")
    return order


def _wait_for_page(guest: httpx.Client, order_id: str, status: str) -> None:
    def shows() -> bool:
        answer = guest.get(f"/mypages/{order_id}")
        return answer.is_success and answer.json()["status"] == status

    wait_until(shows, f"My page does not show order {order_id} as {status}", seconds=PATIENCE_SECONDS)
