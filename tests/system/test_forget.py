"""Personal data is erased on request, and numbers in events some days after the stay: in every place that has them."""

import asyncio
import base64
import gzip
import json
import uuid
from collections import Counter
from datetime import UTC, date, datetime
from functools import partial
from typing import Any

import asyncpg
import pytest

from gotohotel.bus.streams import DEAD_LETTERS, EVENTS
from gotohotel.pay.v1.events_pb2 import PaymentApproved
from ops import audit
from ops.errors import StackError
from ops.forget.redactions import Redaction, Redactions
from ops.services import PUBLISHERS, SERVICES
from ops.stream import archive_locked, jetstream, messages_of, usage
from tests.command_line import gotohotel
from tests.conftest import Client, Hotel, wait_for
from tests.system.test_journey import query


async def places_of(hotel: Hotel, *secrets: str) -> set[str]:
    """Where one of these texts is kept: tables, streams, archive."""
    found = set()
    for service in SERVICES:
        connection = await asyncpg.connect(hotel.stack.database_url(service, "postgres"))
        for (table,) in await connection.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'"):
            for row in await connection.fetch(f"SELECT * FROM {table}"):
                if any(secret in _text(value) for value in row.values() for secret in secrets):
                    found.add(f"{service}.{table}")
        await connection.close()
    async with jetstream(hotel.stack) as js:
        for stream in (str(EVENTS.name), str(DEAD_LETTERS.name)):
            async for message in messages_of(js, stream):
                if any(secret in _text(message.data) for secret in secrets):
                    found.add(stream)
    for file in hotel.stack.archive.glob("*.gz"):
        for line in gzip.decompress(file.read_bytes()).splitlines():
            if any(secret in _text(base64.b64decode(json.loads(line)["data"])) for secret in secrets):
                found.add("archive")
    return found


async def _approved(hotel: Hotel) -> Counter[str]:
    """How many PaymentApproved the stream has, by order."""
    async with jetstream(hotel.stack) as js:
        subject = PaymentApproved.DESCRIPTOR.full_name
        return Counter(
            [each.headers["ce-subject"] async for each in messages_of(js, str(EVENTS.name)) if each.subject == subject]
        )


def _text(value: Any) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)


def ended(hotel: Hotel, guest: Client, name: str, phone: str) -> dict[str, Any]:
    """An order that was paid, confirmed and canceled."""
    order = hotel.order(guest, name=name, phoneNo=phone, requestId=str(uuid.uuid4()))
    hotel.reservation_with(order["id"], status="RECEIVED")
    hotel.desk.post(f"/reservations/{order['id']}:confirm", {"requestId": str(uuid.uuid4())})
    hotel.order_with(order["id"], status="CONFIRMED")
    guest.post(f"/orders/{order['id']}:cancel")
    return hotel.page_with(order["id"], status="CANCELED", paymentStatus="CANCELED", reservationStatus="CANCELED")


@pytest.fixture
def secrets() -> tuple[str, str]:
    """A name and a mobile number that nobody else has."""
    number = uuid.uuid4().int
    return f"Forgotten {number % 10**12}", f"010-{number % 8999 + 1000}-0000"


def forget(hotel: Hotel, *arguments: str) -> Any:
    """Runs the command, again while a service has not handled all events yet."""
    done = gotohotel(hotel.stack, "forget", *arguments)
    while "try again later" in done.stderr:
        done = gotohotel(hotel.stack, "forget", *arguments)
    return done


def test_a_guest_is_forgotten_everywhere(hotel: Hotel, guest: Client, secrets: tuple[str, str]) -> None:
    """In tables, kept answers, outboxes, events and archive; the books stay right, also after a rebuild. An order whose
    stay is not over keeps its name.
    """

    def approved() -> dict[str, int]:
        """How many PaymentApproved of each order the stream has: the archived ones are not in it."""
        found = asyncio.run(_approved(hotel))
        return {each: found[each] for each in (order, second)}

    name, phone = secrets
    begins = datetime.now(UTC).isoformat()
    order = ended(hotel, guest, name, phone)["orderId"]
    archived = gotohotel(hotel.stack, "stream", "archive", "--older-than-days", "0")
    assert archived.returncode == 0, archived.stderr
    second = ended(hotel, guest, name, phone)["orderId"]
    before = asyncio.run(places_of(hotel, name, phone))
    assert {
        "archive",
        "EVENTS",
        "order_svc.orders",
        "order_svc.requests",
        "order_svc.outbox",
        "pay_svc.payments",
    } <= before
    assert {"pay_svc.outbox", "reservation_svc.reservations", "reservation_svc.requests"} <= before
    assert {"mypage_svc.mypages", "mypage_svc.messages"} <= before

    done = forget(hotel, "--subject", guest.subject)

    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("2 orders and 4 events"), done.stdout
    assert asyncio.run(places_of(hotel, name, phone)) == set()
    assert gotohotel(hotel.stack, "rebuild").returncode == 0
    for each in (order, second):
        page = guest.get(f"/mypages/{each}")
        assert (page["name"], page["status"], len(page["timeline"])) == ("", "CANCELED", 7)
        assert guest.get(f"/orders/{each}")["phoneNo"] == ""
    assert forget(hotel, "--subject", guest.subject).stdout.startswith("2 orders and 0 events")

    # What is left of the bookings does not fit their signatures: those who have handled them do not ask for them again.
    kept = approved()
    hotel.stack.stop("nats")  # it forgets the ids of events that were replaced
    hotel.stack.start("nats")
    again = gotohotel(hotel.stack, "republish", "--from", begins, "--to", "2100-01-01")
    assert again.returncode == 0, again.stderr
    unpublished = "SELECT count(*) FROM outbox WHERE published_at IS NULL"
    wait_for(lambda: not any(query(hotel, service, unpublished) for service in PUBLISHERS))
    wait_for(lambda: not any(asyncio.run(usage(hotel.stack)).behind.values()))
    assert approved() == {each: count + 1 for each, count in kept.items()}
    assert not {number: found for number, found in audit.check(hotel.stack).items() if found}


def test_a_guest_with_a_stay_ahead_is_not_forgotten_yet(hotel: Hotel, guest: Client, secrets: tuple[str, str]) -> None:
    """The desk needs the name; the command says which orders are kept, and fails."""
    name, phone = secrets
    order = hotel.order(guest, name=name, phoneNo=phone)["id"]
    hotel.page_with(order, reservationStatus="RECEIVED")

    done = forget(hotel, "--subject", guest.subject)

    assert done.returncode == 1
    assert order in done.stderr
    assert guest.get(f"/orders/{order}")["name"] == name
    assert hotel.reservation_with(order)["name"] == name


def test_nothing_is_erased_that_a_service_still_needs(hotel: Hotel, guest: Client, secrets: tuple[str, str]) -> None:
    """A service that is stopped has not handled the event: its copy of the booking would have no name."""
    name, phone = secrets
    hotel.stack.stop("mypage_svc")
    try:
        order = hotel.order(guest, name=name, phoneNo=phone, card=None)["id"]
        guest.post(f"/orders/{order}:cancel")
        hotel.order_with(order, status="CANCELED")
        refused = gotohotel(hotel.stack, "forget", "--subject", guest.subject)
        assert refused.returncode == 1
        assert "Nothing was erased" in refused.stderr
        assert guest.get(f"/orders/{order}")["name"] == name
    finally:
        hotel.stack.start("mypage_svc")
    hotel.page_with(order, status="CANCELED")
    assert forget(hotel, "--subject", guest.subject).returncode == 0
    assert asyncio.run(places_of(hotel, name, phone)) == set()


def test_numbers_in_events_of_past_stays_are_erased(hotel: Hotel, guest: Client, secrets: tuple[str, str]) -> None:
    """Those of other stays stay: here every stay is ahead."""
    name, phone = secrets
    hotel.page_with(hotel.order(guest, name=name, phoneNo=phone)["id"], reservationStatus="RECEIVED")

    done = forget(hotel, "--stays-over", "30")

    assert done.stdout.startswith("0 events"), done.stderr
    assert "EVENTS" in asyncio.run(places_of(hotel, phone))
    [data] = asyncio.run(_ordered(hotel, phone))
    later = Redaction(before=date.max.isoformat()).of("gotohotel.order.v1.Ordered", data)
    assert later is not None
    assert phone.encode() not in later
    assert name.encode() in later


async def _ordered(hotel: Hotel, phone: str) -> list[bytes]:
    async with jetstream(hotel.stack) as js:
        return [
            message.data
            async for message in messages_of(js, str(EVENTS.name))
            if message.subject == "gotohotel.order.v1.Ordered" and phone.encode() in message.data
        ]


def test_an_event_that_comes_meanwhile_is_left_alone(hotel: Hotel, guest: Client) -> None:
    """Nobody has looked whether it was handled: a relay may have been behind."""

    name = f"Late {uuid.uuid4().hex}"

    async def forget_too_early() -> int:
        async with jetstream(hotel.stack) as js:
            orders: set[str] = set()
            redactions = await Redactions.of_now(hotel.stack, js, Redaction(orders=orders))  # type: ignore[arg-type]
            order = await asyncio.to_thread(partial(hotel.order, guest, name=name))
            orders.add(order["id"])
            await asyncio.to_thread(hotel.page_with, order["id"], reservationStatus="RECEIVED")
            await redactions.require_handled()
            return await redactions.replace()

    with pytest.raises(StackError, match="2 events were published meanwhile"):
        asyncio.run(forget_too_early())
    assert "EVENTS" in asyncio.run(places_of(hotel, name))


def test_while_the_archive_is_in_use_nothing_is_erased(hotel: Hotel, guest: Client) -> None:
    """Events that move meanwhile would be missed; the same holds for a rebuild."""
    hotel.page_with(hotel.order(guest, card=None)["id"], status="PAYMENT_PENDING")
    with archive_locked(hotel.stack):
        for command in (("forget", "--subject", guest.subject), ("rebuild",), ("stream", "archive")):
            refused = gotohotel(hotel.stack, *command)
            assert refused.returncode == 1
            assert "The archive is in use" in refused.stderr


def test_dead_letters_are_dealt_with_first(hotel: Hotel, guest: Client, secrets: tuple[str, str]) -> None:
    """They hold the data too, and would bring it back."""
    name, phone = secrets
    order = hotel.order(guest, name=name, phoneNo=phone, card=None)["id"]
    guest.post(f"/orders/{order}:cancel")
    hotel.page_with(order, status="CANCELED")
    [data] = asyncio.run(_ordered(hotel, phone))

    async def bury(subject: str) -> int:
        async with jetstream(hotel.stack) as js:
            headers = {"x-dead-subject": subject, "ce-subject": order, "ce-id": str(uuid.uuid4())}
            return int((await js.publish("dead.mypage_svc", data, headers=headers)).seq)

    for subject in ("gotohotel.order.v1.Ordered", "gotohotel.order.v1.OfANewerRelease"):
        number = asyncio.run(bury(subject))
        refused = forget(hotel, "--subject", guest.subject)
        assert refused.returncode == 1
        assert f"dead letters {number} hold what is to be erased" in refused.stderr
        gotohotel(hotel.stack, "dead-letters", "drop", str(number))
    assert forget(hotel, "--subject", guest.subject).returncode == 0


@pytest.mark.parametrize("subject", ["nobody", "\N{SNOWMAN}"])
def test_a_guest_who_does_not_exist_is_said_so(hotel: Hotel, subject: str) -> None:
    """A duty to erase is not done by a typing error."""
    refused = gotohotel(hotel.stack, "forget", "--subject", subject)
    assert refused.returncode == 1
    assert "no order of" in refused.stderr or "ASCII" in refused.stderr


@pytest.mark.parametrize("arguments", [(), ("--subject", "a", "--stays-over", "1")], ids=["nothing", "both"])
def test_what_to_forget_is_said_exactly(hotel: Hotel, arguments: tuple[str, ...]) -> None:
    """Otherwise nothing happens."""
    assert "Name either a guest" in gotohotel(hotel.stack, "forget", *arguments).stderr


def test_the_desk_sees_no_whole_number(hotel: Hotel, guest: Client, secrets: tuple[str, str]) -> None:
    """Neither of an order nor of a reservation, in any answer; the guest sees it."""
    _, phone = secrets
    order = hotel.order(guest, phoneNo=phone)
    assert order["phoneNo"] == phone
    masked = hotel.reservation_with(order["id"], status="RECEIVED")["phoneNo"]
    assert masked == f"****{phone[-4:]}"
    assert hotel.desk.get(f"/orders/{order['id']}")["phoneNo"] == masked
    shown = [each for each in hotel.desk.get("/orders?pageSize=200")["orders"] if each["id"] == order["id"]]
    assert [each["phoneNo"] for each in shown] == [masked]
    assert hotel.desk.post(f"/reservations/{order['id']}:confirm")["phoneNo"] == masked
    assert hotel.desk.post(f"/orders/{order['id']}:cancel")["phoneNo"] == masked
    assert guest.get(f"/orders/{order['id']}")["phoneNo"] == phone
