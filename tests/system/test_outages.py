"""When a part is stopped or killed, bookings continue and nothing is lost."""

import base64
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from itertools import cycle
from pathlib import Path
from typing import Any

import grpc.aio
import httpx
import psutil
import pytest
from grpc_health.v1._async import HealthServicer
from grpc_health.v1.health_pb2_grpc import add_HealthServicer_to_server

from gotohotel.order.v1.events_pb2 import Booking
from gotohotel.rpc.tls import server_credentials
from gotohotel.signatures import SigningKey
from ops import audit
from ops.configuration import PROCESSES
from ops.services import ORDER_SIGNING
from tests.command_line import separately
from tests.conftest import Client, Hotel, freeze, wait_for
from tests.gateways import Change, another_gateway
from tests.system.test_journey import CHARGES, query


@contextmanager
def stopped(hotel: Hotel, name: str) -> Iterator[None]:
    """Stops the process for the duration of the block."""
    hotel.stack.stop(name)
    try:
        assert ("STOPPED", 0) in [status[1:3] for status in hotel.stack.status() if status[0] == name]
        yield
    finally:
        hotel.stack.start(name)


def test_bookings_are_taken_while_the_desk_is_down(hotel: Hotel, guest: Client) -> None:
    """All of them reach the desk once it is started again."""
    with stopped(hotel, "reservation_svc"):
        orders = [hotel.order(guest) for _ in range(10)]
        assert {order["status"] for order in orders} == {"PAID"}

    for order in orders:
        hotel.reservation_with(order["id"], status="RECEIVED")
        hotel.page_with(order["id"], reservationStatus="RECEIVED")


def test_orders_are_taken_unpaid_while_pay_is_down(hotel: Hotel, guest: Client) -> None:
    """The answer has the reason and the time to wait; the orders can be paid later."""
    with stopped(hotel, "pay_svc"):
        orders = [hotel.order(guest) for _ in range(8)]
    assert {order["status"] for order in orders} == {"PAYMENT_PENDING"}
    assert {order["paymentError"]["reason"] for order in orders} == {"PAYMENT_UNAVAILABLE"}
    assert {order["paymentError"]["retryAfter"] for order in orders} == {"5s"}

    def is_paid(order_id: str) -> bool:
        # The gateway may keep pay_svc ejected for a few more seconds.
        pay = {"orderId": order_id, "cardNo": "4242424242424242"}
        return bool(guest.post("/payments", pay)["status"] == "PAID")

    for order in orders:
        wait_for(lambda order_id=order["id"]: is_paid(order_id))  # type: ignore[misc]


def test_a_desk_call_changes_nothing_while_pay_is_down(hotel: Hotel, guest: Client) -> None:
    """The desk's call fails, because the payment is canceled first. A guest's cancel waits and is completed later."""
    stands, canceled = hotel.order(guest), hotel.order(guest)
    for order in (stands, canceled):
        hotel.reservation_with(order["id"], status="RECEIVED")
    with stopped(hotel, "pay_svc"):
        for act in ("cancel", "reject"):
            answer = hotel.desk.request("POST", f"/reservations/{stands['id']}:{act}", json={})
            assert answer.status_code == 503
            assert answer.json()["details"][1]["retryDelay"] == "1s"
        guest.request("DELETE", f"/orders/{canceled['id']}").raise_for_status()
        assert hotel.reservation_with(stands["id"])["status"] == "RECEIVED"

    hotel.order_with(canceled["id"], status="CANCELED")
    assert hotel.desk.post(f"/reservations/{stands['id']}:confirm")["status"] == "CONFIRMED"
    assert hotel.order_with(stands["id"], status="CONFIRMED")


def test_bookings_are_taken_while_nats_is_down(hotel: Hotel, guest: Client) -> None:
    """The outbox keeps the events, and they are published afterwards."""
    wait_for(lambda: attempt(hotel, guest) == "PAID")  # pay_svc may still be ejected because of another test
    with stopped(hotel, "nats"):
        orders = [hotel.order(guest) for _ in range(10)]
        assert {order["status"] for order in orders} == {"PAID"}

    for order in orders:
        hotel.page_with(order["id"], status="PAID", reservationStatus="RECEIVED")


def test_a_frozen_database_is_an_answer_and_not_a_hang(hotel: Hotel, guest: Client) -> None:
    """Every caller gets UNAVAILABLE in the contract's format, and bookings succeed after the database resumes."""
    order = hotel.order(guest)
    postmaster = psutil.Process(pid_of(hotel, "postgres"))
    frozen = [postmaster, *postmaster.children(recursive=True)]
    callers = [hotel.caller(subject=guest.subject) for _ in range(30)]
    for process in frozen:
        process.suspend()
    try:
        with ThreadPoolExecutor(max_workers=30) as pool:
            answers = list(pool.map(lambda caller: caller.request("GET", f"/orders/{order['id']}"), callers))
    finally:
        for process in frozen:
            process.resume()

    assert {answer.status_code for answer in answers} == {503}
    assert {answer.json()["details"][0]["reason"] for answer in answers} == {"UNAVAILABLE"}
    wait_for(lambda: attempt(hotel, guest) == "PAID")


def test_a_service_that_starts_while_nats_is_down_serves(hotel: Hotel, guest: Client) -> None:
    """Bookings do not need NATS; the events are published once it is back."""
    with stopped(hotel, "nats"):
        hotel.stack.stop("order_svc")
        hotel.stack.start("order_svc")
        order = hotel.order(guest)

    hotel.page_with(order["id"], reservationStatus="RECEIVED")


@pytest.mark.parametrize("name", PROCESSES)
def test_a_killed_process_comes_back_by_itself(hotel: Hotel, guest: Client, name: str) -> None:
    """After kill -9 of any part, acknowledged bookings are still there and the next booking succeeds."""

    def books_again() -> bool:
        return attempt(hotel, guest) == "PAID"

    wait_for(books_again)  # pay_svc may still be ejected because of another test
    before = hotel.order(guest)
    assert before["status"] == "PAID"
    pid = {process: pid for process, _, pid, _ in hotel.stack.status()}[name]

    os.kill(pid, signal.SIGKILL)

    wait_for(books_again)
    wait_for(lambda: pid_of(hotel, name) not in (0, pid))
    hotel.page_with(before["id"], status="PAID", reservationStatus="RECEIVED")


def healthz(hotel: Hotel) -> tuple[int, dict[str, Any]]:
    """The gateway's health check, called without a token."""
    answer = httpx.get(f"{hotel.stack.gateway_url}/healthz", timeout=10)
    return answer.status_code, answer.json()


def test_healthz_says_whether_an_order_could_be_taken(hotel: Hotel) -> None:
    """If not, it names what is missing: order_svc, or its database once that is away for ten seconds."""
    well = (200, {"status": "SERVING"})
    assert healthz(hotel) == well
    with stopped(hotel, "order_svc"):
        wait_for(lambda: healthz(hotel) == (503, {"status": "NOT_SERVING", "missing": ["order_svc"]}))
    wait_for(lambda: healthz(hotel) == well)
    with stopped(hotel, "postgres"):
        wait_for(lambda: healthz(hotel) == (503, {"status": "NOT_SERVING", "missing": ["postgres"]}))
    wait_for(lambda: healthz(hotel) == well)


def test_healthz_says_so_if_order_svc_is_frozen(hotel: Hotel) -> None:
    """A frozen order_svc accepts the connection but does not answer, and healthz reports it as missing."""
    pid = pid_of(hotel, "order_svc")
    freeze(pid)
    try:  # the last answer is good for a second, and until the next one is there
        wait_for(lambda: healthz(hotel) == (503, {"status": "NOT_SERVING", "missing": ["order_svc"]}))
    finally:
        os.kill(pid, signal.SIGCONT)

    wait_for(lambda: healthz(hotel) == (200, {"status": "SERVING"}))


async def test_healthz_knows_an_order_svc_of_the_release_before(hotel: Hotel, tmp_path: Path) -> None:
    """During a rollout, order_svc may not know the health check "database"; then it counts as healthy if it answers."""
    server = grpc.aio.server()
    add_HealthServicer_to_server(HealthServicer(), server)
    port = server.add_secure_port("127.0.0.1:0", server_credentials(hotel.stack.tls_folder("order")))
    await server.start()
    before = Change(rf"\b{hotel.stack.ports['order']}\b", str(port), times=2)
    try:
        with another_gateway(hotel.stack, tmp_path, before) as twin:
            async with httpx.AsyncClient(timeout=10) as client:
                answer = await client.get(f"{twin.gateway_url}/healthz")
    finally:
        await server.stop(grace=None)

    assert (answer.status_code, answer.json()) == (200, {"status": "SERVING"})


@cache
def _nights(hotel: Hotel) -> Iterator[dict[str, str]]:
    """Twenty nights that all attempts of all tests share: there are too few bookable nights for one each."""
    return cycle([hotel.stay() for _ in range(20)])


def attempt(hotel: Hotel, guest: Client) -> str:
    """Attempts a booking while a part may be away; returns the order's status, the HTTP status or `unreachable`."""
    try:
        answer = guest.request("POST", "/orders", json=hotel.booking(**next(_nights(hotel))))
    except httpx.HTTPError:
        return "unreachable"
    return str(answer.json().get("status")) if answer.is_success else str(answer.status_code)


def pid_of(hotel: Hotel, name: str) -> int:
    return {process: pid for process, _, pid, _ in hotel.stack.status()}[name]


def test_pay_killed_after_the_processor_said_yes(hotel: Hotel, guest: Client) -> None:
    """The intent is settled by asking the processor: there is one charge, and the guest sees PAID."""
    order = hotel.order(guest, card=None)
    order_id = order["id"]
    attempt_id = "00000000-0000-7000-8000-0000000000a1"
    # Exactly what a pay_svc that dies at this point leaves behind: the intent, and the processor's entry.
    booking = Booking(name="Guest", room_type="Normal", guest_cnt=2, owner=guest.subject)
    SigningKey(hotel.stack.credentials[ORDER_SIGNING]).sign(booking, order_id, "KRW", 80000, 0)
    signature = base64.b64encode(Booking(signature=booking.signature).SerializeToString()).decode()
    query(hotel, "pay_svc", INTENT, order_id, attempt_id, guest.subject, signature)
    query(hotel, "sandbox", ENTRY, attempt_id, order_id)

    hotel.order_with(order_id, status="PAID")
    hotel.page_with(order_id, status="PAID", reservationStatus="RECEIVED")
    assert query(hotel, "sandbox", CHARGES, order_id) == 1


def test_the_smoke_test_waits_for_a_payment_that_could_not_be_tried(hotel: Hotel) -> None:
    """It pays again when the answer says so, as a guest may."""

    def unpaid() -> bool:
        found = [order for order in hotel.desk.get("/orders")["orders"] if order["name"] == "Smoke test"]
        return any(order.get("paymentError", {}).get("reason") == "PAYMENT_UNAVAILABLE" for order in found)

    with ThreadPoolExecutor(1) as pool:
        with stopped(hotel, "pay_svc"):
            trying = pool.submit(separately, hotel.stack, "smoke")
            wait_for(unpaid)
        done = trying.result()

    assert done.returncode == 0, done.stderr


INTENT = """
INSERT INTO payments (
    id, order_id, owner, booking, currency, amount, refunded, status, card_brand, card_last4, card_fingerprint,
    attempt_id, attempt_open_since, decline_reason, approval_no, version, created_at, updated_at
)
VALUES (
    $1, $1, $3, jsonb_build_object('name', 'Guest', 'phone_no', '', 'room_type', 'Normal', 'guest_cnt', 2,
    'check_in', '', 'check_out', '', 'owner', $3::text, 'unknown', $4::text),
    'KRW', 80000, 0, 'PENDING', 'VISA', '4242', '', $2,
    now() - interval '1 minute', '', '', 0, now() - interval '1 minute', now() - interval '1 minute'
)
"""
ENTRY = """
INSERT INTO entries (key, order_id, kind, reason, currency, amount, approval_no)
VALUES ($1, $2, 'CHARGE', '', 'KRW', 80000, 'A1')
"""


def test_the_books_agree_after_all_of_that(hotel: Hotel) -> None:
    """The audit finds no violation after the outages above."""
    assert not {number: found for number, found in audit.check(hotel.stack).items() if found}
