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

import psutil
import pytest

from gotohotel.bus.streams import DEAD_LETTERS
from ops import audit, dead_letters
from ops.backup import LATER, copying, restore
from ops.errors import StackError
from ops.stack import Stack
from ops.stream import jetstream, messages_of
from tests.command_line import gotohotel
from tests.conftest import GOOD_CARD, Client, Hotel, wait_for


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


async def _letter_ids(stack: Stack) -> set[str]:
    """The beginnings of the ids of the dead letters' messages."""
    async with jetstream(stack) as js:
        return {each.headers["Nats-Msg-Id"].split("/")[0] async for each in messages_of(js, str(DEAD_LETTERS.name))}


def _drop_letters(stack: Stack) -> int:
    """Drops all dead letters; returns how many there were."""
    letters = asyncio.run(dead_letters.every(stack))
    for letter in letters:
        asyncio.run(dead_letters.drop(stack, letter.number))
    return len(letters)


@pytest.fixture(scope="module")
def second(folder: Path, copied: Copied) -> Iterator[Stack]:
    """A stack that was made of the backup, in an empty home."""
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
    second.up()  # if a test has stopped it
    guest, desk = (Client(second, subject=copied.guest, role=role) for role in ("guest", "desk"))
    try:
        wait_for(lambda: guest.request("GET", f"/mypages/{copied.unseen}").is_success)
        wait_for(lambda: guest.get(f"/mypages/{copied.unseen}")["reservationStatus"] == "RECEIVED")
        for order in copied.paid:
            assert guest.get(f"/orders/{order}")["status"] == "PAID"
            assert desk.get(f"/reservations/{order}")["status"] == "RECEIVED"
        assert guest.get(f"/mypages/{copied.canceled}")["status"] == "CANCELED"
        assert asyncio.run(_letter_ids(second)) == {"restored"}  # the new stream may give their own ids again
        assert _drop_letters(second) == 2
        assert not violations(second)

        # It goes on, and the other one is untouched.
        fresh = guest.post("/orders", {"name": "A", "roomType": "Prime", "cardNo": GOOD_CARD})
        assert fresh["status"] == "PAID"
        assert hotel.desk.request("GET", f"/orders/{fresh['id']}").status_code == 404
        wait_for(lambda: desk.request("GET", f"/reservations/{fresh['id']}").is_success)
    finally:
        guest.close()
        desk.close()


def test_what_came_after_the_backup_is_named(copied: Copied, second: Stack, folder: Path) -> None:
    """The database is lost, the stream has survived: its later events are listed by order, with what was paid."""
    second.up()  # if a test has stopped it
    guest = Client(second, subject=copied.guest, role="guest")
    later = guest.post("/orders", {"name": "B", "roomType": "Prime", "cardNo": GOOD_CARD})["id"]
    guest.post(f"/orders/{copied.paid[0]}:cancel")
    wait_for(lambda: guest.get(f"/mypages/{copied.paid[0]}")["status"] == "CANCELED")
    wait_for(lambda: guest.request("GET", f"/mypages/{later}").is_success)
    wait_for(lambda: guest.get(f"/mypages/{later}")["reservationStatus"] == "RECEIVED")
    guest.close()
    third = Stack.on_free_ports(folder / "third")
    arguments = ("restore", str(copied.folder), "--lost", str(second.home))
    assert "has its database" in gotohotel(third, *arguments).stderr
    second.down()
    shutil.move(second.home / "postgres", folder / "lost")
    secrets = json.loads((second.home / "secrets.json").read_text())
    (folder / "foreign").mkdir()
    (folder / "foreign" / "secrets.json").write_text(json.dumps({**secrets, "order_signing": "of another hotel"}))
    foreign = gotohotel(third, "restore", str(copied.folder), "--lost", str(folder / "foreign"))
    assert "is the home of another hotel" in foreign.stderr
    try:
        told = gotohotel(third, *arguments)

        assert told.returncode == 0, told.stderr
        named = {tuple(line.split()[1:]) for line in told.stdout.splitlines() if "gotohotel." in line}
        assert {
            (later, "gotohotel.order.v1.Ordered"),
            (later, "gotohotel.pay.v1.PaymentApproved"),
            (copied.paid[0], "gotohotel.order.v1.OrderCanceled"),
            (copied.paid[0], "gotohotel.pay.v1.PaymentCanceled"),
        } <= named, told.stdout
        assert not {line[0] for line in named} & {copied.unseen, *copied.paid[1:]}
        kept = [json.loads(line) for line in (third.home / LATER).read_text().splitlines()]
        approved = [each for each in kept if each["order_id"] == later and each["type"].endswith("PaymentApproved")]
        assert approved[0]["event"]["amount"]["units"]
        guest = Client(third, subject=copied.guest, role="guest")
        assert guest.get(f"/orders/{copied.paid[0]}")["status"] == "PAID"
        assert guest.request("GET", f"/orders/{later}").status_code == 404
        assert guest.request("GET", f"/mypages/{later}").status_code == 404
        guest.close()
        _drop_letters(third)
        assert not violations(third)
    finally:
        third.down()
        shutil.move(folder / "lost", second.home / "postgres")


@pytest.mark.parametrize("broken", ["killed before anything is sent", "a message can't be sent"])
def test_a_hotel_that_is_not_completely_restored_does_not_start(
    copied: Copied, folder: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    """It says what to do. Its parts have stopped."""
    stack = Stack.on_free_ports(folder / uuid.uuid4().hex[:8])
    count = 0

    async def fail(*_: object, **__: object) -> None:
        nonlocal count
        count += 1
        if count > 2:
            raise TimeoutError

    name = "_stored_events" if "killed" in broken else "_publish"
    count = 2 if "killed" in broken else 0
    with monkeypatch.context() as failing:
        failing.setattr(f"ops.backup.restoring.{name}", fail)
        with pytest.raises((TimeoutError, StackError)):
            restore(stack, copied.folder)

    assert count > 2
    assert not stack.is_up
    for command in (["up"], ["start", "order_svc"], ["restore", str(copied.folder)]):
        told = gotohotel(stack, *command)
        assert told.returncode == 1
        assert "was not completed" in told.stderr or "into an empty home" in told.stderr


@pytest.mark.parametrize("part", ["archive/", "postgres/base", "home/secrets", "dead_letters/"])
def test_a_damaged_backup_is_refused_before_anything_is_done(
    copied: Copied, folder: Path, tmp_path: Path, part: str
) -> None:
    """Whether a file is missing or one byte of it has changed."""
    stack = Stack.on_free_ports(tmp_path)
    copy = folder / uuid.uuid4().hex[:8]
    shutil.copytree(copied.folder, copy)
    file = next(each for each in copy.rglob("*") if str(each.relative_to(copy)).startswith(part) and each.is_file())
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    assert "missing or changed" in gotohotel(stack, "restore", str(copy)).stderr
    file.unlink()
    assert "missing or changed" in gotohotel(stack, "restore", str(copy)).stderr
    assert not any(tmp_path.iterdir())


def test_what_is_no_backup_or_no_place_for_one_is_refused(hotel: Hotel, copied: Copied, tmp_path: Path) -> None:
    """One sentence each; a backup that fails leaves nothing."""
    stack = Stack.on_free_ports(tmp_path / "home")

    assert "no complete backup" in gotohotel(stack, "restore", str(tmp_path)).stderr
    assert "into an empty home" in gotohotel(hotel.stack, "restore", str(copied.folder)).stderr
    assert "exists: a backup needs" in gotohotel(hotel.stack, "backup", str(copied.folder)).stderr
    assert "can't be made" in gotohotel(hotel.stack, "backup", "/proc/nope").stderr
    hotel.stack.stop("nats")
    try:
        assert "NATS can't be reached" in gotohotel(hotel.stack, "backup", str(tmp_path / "new")).stderr
    finally:
        hotel.stack.start("nats")
    assert not any(tmp_path.iterdir())
    assert {file.stat().st_mode & 0o077 for file in (copied.folder, copied.folder / "backup.json")} == {0}


async def test_a_backup_does_not_wait_for_ever(hotel: Hotel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A frozen PostgreSQL sends nothing: the copy is given up."""
    monkeypatch.setattr(copying, "STALLED_SECONDS", 1.0)
    [pid] = [pid for name, _, pid, _ in hotel.stack.status() if name == "postgres"]
    frozen = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    for process in frozen:
        process.suspend()
    try:
        with pytest.raises(StackError, match="sent nothing"):
            await copying._copy_databases(hotel.stack, tmp_path / "postgres")
    finally:
        for process in frozen:
            process.resume()
    await asyncio.to_thread(wait_for, lambda: hotel.desk.request("GET", "/roomTypes").is_success)


def test_a_folder_that_may_be_somebodys_is_left_alone(hotel: Hotel, tmp_path: Path) -> None:
    """A backup is written beside its final name; what is there already is not removed."""
    (tmp_path / "backup.new").mkdir()

    assert "remove it" in gotohotel(hotel.stack, "backup", str(tmp_path / "backup")).stderr
    assert [each.name for each in tmp_path.iterdir()] == ["backup.new"]
