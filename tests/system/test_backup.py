"""A backup that was made under load becomes a hotel in an empty home, and what came after it is named."""

import asyncio
import json
import shutil
import tempfile
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from ops import audit, dead_letters
from ops.backup import LATER, restore
from ops.errors import StackError
from ops.stack import Stack
from ops.stream import jetstream
from tests.conftest import Client, Hotel, wait_for
from tests.system.test_stack import gotohotel


@dataclass
class Copied:
    """A backup, and what the callers had been told before it was begun."""

    folder: Path
    paid: list[str] = field(default_factory=list)
    unseen: str = ""  # an order whose events mypage_svc had not handled
    canceled: str = ""
    guest: str = ""


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A folder with a short path, because it will contain sockets."""
    made = Path(tempfile.mkdtemp(prefix="gotohotel-"))
    yield made
    shutil.rmtree(made)


@pytest.fixture(scope="module")
def copied(hotel: Hotel, folder: Path) -> Copied:
    """Made while guests book, and while one service is stopped."""
    guest = hotel.caller(subject=f"backup-{uuid.uuid4()}")
    made = Copied(folder / "backup", guest=guest.subject)
    made.paid = [hotel.order(guest)["id"] for _ in range(3)]
    made.canceled = made.paid.pop()
    guest.post(f"/orders/{made.canceled}:cancel")
    hotel.page_with(made.canceled, status="CANCELED", paymentStatus="CANCELED", reservationStatus="CANCELED")
    asyncio.run(_publish_nonsense(hotel.stack))
    wait_for(lambda: len(asyncio.run(dead_letters.every(hotel.stack))) == 2)  # reservation_svc and mypage_svc listen
    done = threading.Event()

    def book() -> None:
        other = hotel.caller()
        while not done.wait(0.05):
            hotel.order(other)

    load = threading.Thread(target=book)
    hotel.stack.stop("mypage_svc")
    try:
        made.unseen = hotel.order(guest)["id"]
        load.start()
        told = gotohotel(hotel.stack, "backup", str(made.folder))
        assert told.returncode == 0, told.stderr
    finally:
        hotel.stack.start("mypage_svc")
        done.set()
        load.join()
    hotel.page_with(made.unseen, status="PAID")
    _drop_letters(hotel.stack)
    return made


async def _publish_nonsense(stack: Stack) -> None:
    """An event that becomes a dead letter."""
    headers = {"ce-id": str(uuid.uuid4()), "ce-subject": "nonsense"}
    async with jetstream(stack) as js:
        await js.publish("gotohotel.order.v1.OrderCanceled", b"\xff\xff", headers=headers)


def _drop_letters(stack: Stack) -> int:
    """Drops all dead letters; returns how many there were."""
    letters = asyncio.run(dead_letters.every(stack))
    for letter in letters:
        asyncio.run(dead_letters.drop(stack, letter.number))
    return len(letters)


@pytest.fixture(scope="module")
def second(folder: Path, copied: Copied) -> Iterator[Stack]:
    """A stack that was made of the backup, in an empty home. Each test leaves it as restored."""
    stack = Stack.on_free_ports(folder / uuid.uuid4().hex[:8])
    try:
        told = gotohotel(stack, "restore", str(copied.folder))
        assert told.returncode == 0, told.stderr
        yield stack
    finally:
        stack.down()


def violations(stack: Stack) -> dict[str, object]:
    """What the audit finds."""
    return {invariant: found for invariant, found in audit.check(stack).items() if found}


def test_a_backup_becomes_a_hotel_in_an_empty_home(hotel: Hotel, copied: Copied, second: Stack) -> None:
    """What was acknowledged before the backup is there; what was not handled yet is handled; the books agree."""
    guest, desk = (Client(second, subject=copied.guest, role=role) for role in ("guest", "desk"))
    try:
        wait_for(lambda: guest.request("GET", f"/mypages/{copied.unseen}").is_success)
        wait_for(lambda: guest.get(f"/mypages/{copied.unseen}")["reservationStatus"] == "RECEIVED")
        for order in copied.paid:
            assert guest.get(f"/orders/{order}")["status"] == "PAID"
            assert desk.get(f"/reservations/{order}")["status"] == "RECEIVED"
        assert guest.get(f"/mypages/{copied.canceled}")["status"] == "CANCELED"
        assert _drop_letters(second) == 2
        assert not violations(second)

        # It goes on, and the other one is untouched.
        fresh = guest.post("/orders", {"name": "A", "roomType": "Prime", "cardNo": "4242424242424242"})
        assert fresh["status"] == "PAID"
        assert hotel.desk.request("GET", f"/orders/{fresh['id']}").status_code == 404
        wait_for(lambda: desk.request("GET", f"/reservations/{fresh['id']}").is_success)
    finally:
        guest.close()
        desk.close()


def test_what_came_after_the_backup_is_named(copied: Copied, second: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """The database is lost, the stream has survived: its later events change nothing, and are listed by order. A
    restore that is interrupted is run again; until it is complete, nobody starts the hotel otherwise.
    """
    guest = Client(second, subject=copied.guest, role="guest")
    later = guest.post("/orders", {"name": "B", "roomType": "Prime", "cardNo": "4242424242424242"})["id"]
    guest.post(f"/orders/{copied.paid[0]}:cancel")
    wait_for(lambda: guest.get(f"/mypages/{copied.paid[0]}")["status"] == "CANCELED")
    wait_for(lambda: guest.request("GET", f"/mypages/{later}").is_success)
    wait_for(lambda: guest.get(f"/mypages/{later}")["reservationStatus"] == "RECEIVED")
    second.down()
    assert "Move it away first" in gotohotel(second, "restore", str(copied.folder)).stderr
    shutil.rmtree(second.home / "postgres")
    with monkeypatch.context() as broken:
        broken.delattr("ops.backup.restoring._send_again")
        with pytest.raises(NameError):
            restore(second, copied.folder)
    second.down()
    with pytest.raises(StackError, match="restore was interrupted"):
        second.up()

    told = gotohotel(second, "restore", str(copied.folder))

    assert told.returncode == 0, told.stderr
    named = {tuple(line.split()[1:]) for line in told.stdout.splitlines() if "gotohotel." in line}
    assert {
        (later, "gotohotel.order.v1.Ordered"),
        (later, "gotohotel.pay.v1.PaymentApproved"),
        (copied.paid[0], "gotohotel.order.v1.OrderCanceled"),
        (copied.paid[0], "gotohotel.pay.v1.PaymentCanceled"),
    } <= named, told.stdout
    kept = [json.loads(line) for line in (second.home / LATER).read_text().splitlines()]
    assert {
        each["event"]["amount"]["units"] for each in kept if each["order_id"] == later and "Approved" in each["type"]
    }
    assert guest.get(f"/orders/{copied.paid[0]}")["status"] == "PAID"
    assert guest.request("GET", f"/orders/{later}").status_code == 404
    assert guest.request("GET", f"/mypages/{later}").status_code == 404
    _drop_letters(second)
    assert not violations(second)
    guest.close()


def test_what_is_no_backup_is_refused(hotel: Hotel, copied: Copied, tmp_path: Path) -> None:
    """A backup without its last file is not complete; a folder with files gets none."""
    stack = Stack.on_free_ports(tmp_path / "home")

    assert "no complete backup" in gotohotel(stack, "restore", str(tmp_path)).stderr
    assert "run `make down` first" in gotohotel(hotel.stack, "restore", str(copied.folder)).stderr
    assert "is not empty" in gotohotel(hotel.stack, "backup", str(copied.folder)).stderr
    assert not (stack.home / "postgres").exists()
