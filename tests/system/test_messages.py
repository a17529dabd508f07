"""KakaoTalk messages on the running system, counted in the provider's own log (A8)."""

import os
import signal
import time
from typing import Any

import pytest

from ops import audit
from tests.conftest import Client, Hotel, wait_for
from tests.system import test_journey
from tests.system.test_outages import stopped


def notifications(hotel: Hotel, order_id: str) -> dict[str, str]:
    """Template → status, as the guest sees them."""
    answer = hotel.desk.request("GET", f"/mypages/{order_id}")
    page = answer.json() if answer.is_success else {"notifications": []}
    return {each["template"]: each["status"] for each in page["notifications"]}


def pid_of(hotel: Hotel, name: str) -> int:
    return next(pid for process, _, pid, _ in hotel.stack.status() if process == name)


def found_by_a8(hotel: Hotel) -> list[str]:
    return audit.check(hotel.stack)["A8"]


def test_a_guest_is_told_of_every_change(hotel: Hotel, guest: Client) -> None:
    """From the order to the cancel, each once, and My page shows what became of the messages."""
    order = hotel.order(guest, phoneNo="010-1234-0000")
    assert order["status"] == "PAID"
    hotel.reservation_with(order["id"], status="RECEIVED")
    hotel.desk.post(f"/reservations/{order['id']}:confirm")
    hotel.page_with(order["id"], status="CONFIRMED")
    guest.post(f"/orders/{order['id']}:cancel")
    hotel.page_with(order["id"], status="CANCELED")

    expected = dict.fromkeys(("GTH_ORDERED", "GTH_PAID", "GTH_CONFIRMED", "GTH_CANCELING", "GTH_CANCELED"), "DELIVERED")
    wait_for(lambda: notifications(hotel, order["id"]) == expected, lambda: str(notifications(hotel, order["id"])))
    assert found_by_a8(hotel) == []


@pytest.mark.parametrize(
    ("end", "status"),
    [("0001", "DELIVERED"), ("0500", "DELIVERED"), ("3018", "DELIVERED"), ("3008", "FAILED"), ("5000", "FAILED")],
    ids=["lost answer", "HTTP 500", "SMS", "bad number", "refused number"],
)
def test_a_difficult_provider_gets_each_message_once(hotel: Hotel, guest: Client, end: str, status: str) -> None:
    """Whatever it answers."""
    order = hotel.order(guest, card=None, phoneNo=f"010-1234-{end}")
    wait_for(lambda: shows_soon(hotel, order["id"], {"GTH_ORDERED": status}))
    assert found_by_a8(hotel) == []


def test_a_sender_that_is_killed_between_call_and_record_sends_nothing_twice(hotel: Hotel, guest: Client) -> None:
    """The provider has the message and answers late; the sender is killed meanwhile."""
    order = hotel.order(guest, card=None, phoneNo="010-1234-1005")
    log = hotel.stack.home / "kakao.jsonl"
    wait_for(lambda: log.exists() and order["id"] in log.read_text())
    os.kill(pid_of(hotel, "mypage_svc"), signal.SIGKILL)
    wait_for(lambda: _sees(hotel, order["id"]))
    assert log.read_text().count(order["id"]) == 1
    made_due(hotel)
    wait_for(lambda: shows_soon(hotel, order["id"], {"GTH_ORDERED": "DELIVERED"}))

    assert log.read_text().count(order["id"]) == 1
    assert found_by_a8(hotel) == []


def _sees(hotel: Hotel, order_id: str) -> bool:
    return bool(hotel.desk.request("GET", f"/mypages/{order_id}").is_success)


def made_due(hotel: Hotel) -> None:
    """The claim of a killed sender lasts a minute, and a pause may last as long; here they end now."""
    query(hotel, "UPDATE messages SET next_try_at = now() WHERE status IN ('PENDING', 'ACCEPTED')")


def shows_soon(hotel: Hotel, order_id: str, expected: dict[str, str]) -> bool:
    """Whether My page shows these messages; those that are not finished are due now."""
    if notifications(hotel, order_id) == expected:
        return True
    time.sleep(0.5)
    made_due(hotel)
    return False


def query(hotel: Hotel, statement: str) -> Any:
    return test_journey.query(hotel, "mypage_svc", statement)


def test_bookings_and_pages_do_not_wait_for_the_provider(hotel: Hotel, guest: Client) -> None:
    """While it is stopped the messages wait; afterwards each is sent once."""
    log = hotel.stack.home / "log" / "mypage_svc.log"
    before = log.read_text().count("the provider can't be reached")
    with stopped(hotel, "kakao"):
        order = hotel.order(guest, phoneNo="010-1234-0000")
        assert order["status"] == "PAID"
        hotel.page_with(order["id"], reservationStatus="RECEIVED")
        wait_for(lambda: log.read_text().count("the provider can't be reached") > before)
        assert notifications(hotel, order["id"]) == {"GTH_ORDERED": "PENDING", "GTH_PAID": "PENDING"}
    made_due(hotel)
    expected = {"GTH_ORDERED": "DELIVERED", "GTH_PAID": "DELIVERED"}
    wait_for(lambda: shows_soon(hotel, order["id"], expected))
    assert found_by_a8(hotel) == []


def test_the_audit_notices_a_message_that_is_missing_or_sent_twice(hotel: Hotel, guest: Client) -> None:
    """In the rows, and in the provider's log."""
    order = hotel.order(guest, card=None, phoneNo="010-1234-0000")
    wait_for(lambda: notifications(hotel, order["id"]) == {"GTH_ORDERED": "DELIVERED"})
    log = hotel.stack.home / "kakao.jsonl"
    before = log.read_text()
    [line] = [line for line in before.splitlines() if order["id"] in line]
    try:
        log.write_text(before + line + "\n")
        assert any("2 times" in found for found in audit.check(hotel.stack, patience_seconds=0)["A8"])
        log.write_text(before.replace(line + "\n", ""))
        assert any("the provider has none" in found for found in audit.check(hotel.stack, patience_seconds=0)["A8"])
    finally:
        log.write_text(before)
    query(hotel, f"UPDATE messages SET order_id = '{'0' * 32}' WHERE order_id = '{order['id']}'")
    try:
        found = audit.check(hotel.stack, patience_seconds=0)["A8"]
        assert f"order {order['id']}: there is no message about GTH_ORDERED" in found
    finally:
        query(hotel, f"UPDATE messages SET order_id = '{order['id']}' WHERE order_id = '{'0' * 32}'")
