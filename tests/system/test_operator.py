"""The commands for an operator when events went wrong: dead letters, republish, rebuild, stream and archive.

Long because each command needs the same broken stream.
"""

import asyncio
import re
import subprocess
import sys
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import nats
import pytest

from gotohotel.pay.v1.events_pb2 import PaymentCanceled
from gotohotel.wire import timestamp
from ops import audit
from tests.command_line import gotohotel, separately
from tests.conftest import Client, Hotel, wait_for
from tests.system.test_journey import query


def letters(hotel: Hotel) -> dict[str, list[int]]:
    """The numbers of the dead letters, by the aggregate of the event."""
    found: dict[str, list[int]] = {}
    for line in gotohotel(hotel.stack, "dead-letters", "list").stdout.splitlines():
        if match := re.match(r" *(\d+)  .* (\S+)$", line):
            found.setdefault(match[2], []).append(int(match[1]))
    return found


def in_jetstream(hotel: Hotel, act: Any) -> Any:
    """Calls `act` with a JetStream context and returns its result."""

    async def run() -> Any:
        client = await nats.connect(hotel.stack.nats_url())
        try:
            return await act(client.jetstream())
        finally:
            await client.close()

    return asyncio.run(run())


def test_a_dead_letter_is_kept_shown_and_redriven_once(hotel: Hotel) -> None:
    """My page's database refuses a row: other orders are not affected, and after the fix each event is applied once."""
    poisoned, healthy = hotel.caller(subject="poisoned"), hotel.caller()
    query(hotel, "mypage_svc", "ALTER TABLE mypages ADD CONSTRAINT poison CHECK (owner <> 'poisoned') NOT VALID")
    try:
        bad = hotel.order(poisoned)["id"]
        good = hotel.order(healthy)["id"]
        hotel.page_with(good, status="PAID", reservationStatus="RECEIVED")
        wait_for(lambda: len(letters(hotel).get(bad, [])) == 2)  # Ordered and PaymentApproved contain the owner
    finally:
        query(hotel, "mypage_svc", "ALTER TABLE mypages DROP CONSTRAINT poison")

    shown = gotohotel(hotel.stack, "dead-letters", "show", str(letters(hotel)[bad][0])).stdout
    assert "x-dead-consumer: mypage_svc" in shown
    assert "CheckViolationError" in shown
    assert f'order_id: "{bad}"' in shown
    numbers = [str(number) for number in letters(hotel)[bad]]
    assert gotohotel(hotel.stack, "dead-letters", "redrive", *numbers).returncode == 0
    shown_events = ["Ordered", "PaymentApproved", "ReservationTaken"]
    wait_for(lambda: sorted(entry["event"] for entry in hotel.page_with(bad)["timeline"]) == shown_events)
    hotel.page_with(bad, status="PAID", reservationStatus="RECEIVED")
    assert bad not in letters(hotel)
    again = gotohotel(hotel.stack, "dead-letters", "redrive", *numbers)
    assert again.returncode == 1
    assert f"There is no dead letter {numbers[1]}" in again.stderr
    assert f"There is no dead letter {numbers[0]}" in again.stderr
    assert hotel.reservation_with(bad, status="RECEIVED")


def test_a_dead_letter_can_be_dropped(hotel: Hotel) -> None:
    """A message that is not an event can never be handled, so an operator drops it."""

    async def publish(js: Any) -> None:
        headers = {"ce-id": "no-event", "ce-subject": "nonsense"}
        await js.publish("gotohotel.order.v1.OrderCanceled", b"\xff\xff", headers=headers)

    in_jetstream(hotel, publish)
    wait_for(lambda: len(letters(hotel).get("nonsense", [])) == 2)  # reservation_svc and mypage_svc listen to it
    redriven = letters(hotel)["nonsense"]
    gotohotel(hotel.stack, "dead-letters", "redrive", *map(str, redriven))
    wait_for(lambda: len(set(letters(hotel).get("nonsense", [])) - set(redriven)) == 2)  # one each again, not more
    numbers = [str(number) for number in letters(hotel)["nonsense"]]
    assert "ff ff" in gotohotel(hotel.stack, "dead-letters", "show", numbers[0]).stdout

    assert gotohotel(hotel.stack, "dead-letters", "drop", *numbers).returncode == 0

    assert "nonsense" not in letters(hotel)


def test_events_that_the_stream_has_lost_are_published_again(hotel: Hotel, guest: Client) -> None:
    """Events that the stream still has are published again too, and change nothing."""
    begins = datetime.now(UTC) - timedelta(minutes=1)
    order = hotel.order(guest)["id"]
    before = hotel.page_with(order, status="PAID", reservationStatus="RECEIVED")

    async def lose(js: Any) -> int:
        lost = 0
        for number in range(1, (await js.stream_info("EVENTS")).state.last_seq + 1):
            try:
                headers = (await js.get_msg("EVENTS", number)).headers or {}
            except nats.js.errors.NotFoundError:
                continue
            if headers.get("ce-subject") == order:
                lost += await js.delete_msg("EVENTS", number)
        return lost

    # After a restart NATS has also forgotten their ids, as after a restore from a backup.
    assert in_jetstream(hotel, lose) == 3
    hotel.stack.stop("nats")
    hotel.stack.start("nats")
    assert audit.check(hotel.stack, patience_seconds=0)["A6"]

    done = gotohotel(hotel.stack, "republish", "--from", begins.isoformat(), "--to", "2100-01-01")

    assert done.returncode == 0, done.stderr
    assert re.search(r"^order_svc: [1-9]\d* events", done.stdout, re.MULTILINE)
    wait_for(lambda: not any(audit.check(hotel.stack, patience_seconds=0).values()))
    after = hotel.page_with(order, status="PAID", reservationStatus="RECEIVED")
    assert after == before


def test_my_page_is_rebuilt_under_load(hotel: Hotel, guest: Client) -> None:
    """The old pages are served until the new ones are complete, and a deleted page is restored."""
    another = hotel.caller()
    kept = [hotel.order(guest, roomType="Normal")["id"] for _ in range(5)]
    whole = {"status": "PAID", "paymentStatus": "APPROVED", "reservationStatus": "RECEIVED"}  # events come in any order
    pages = [hotel.page_with(order, **whole) for order in kept]
    query(hotel, "mypage_svc", "DELETE FROM mypages WHERE order_id = $1", kept[0])
    meanwhile: list[str] = []
    seen: list[int] = []
    ended = threading.Event()

    def book() -> None:
        while not ended.is_set():
            meanwhile.append(hotel.order(another)["id"])

    def look() -> None:
        while not ended.is_set():
            seen.append(guest.request("GET", f"/mypages/{kept[1]}").status_code)
            time.sleep(0.025)  # a guest may make 50 calls a second

    with ThreadPoolExecutor() as pool:
        running = [pool.submit(book), pool.submit(look)]
        try:
            rebuilt = gotohotel(hotel.stack, "rebuild")
        finally:
            ended.set()
        for task in running:
            task.result()

    assert rebuilt.returncode == 0, rebuilt.stderr
    assert set(seen) == {200}
    assert [hotel.page_with(order) for order in kept] == pages
    for order in meanwhile:
        hotel.page_with(order, status="PAID", reservationStatus="RECEIVED")


def test_a_rebuild_passes_over_what_can_never_be_applied(hotel: Hotel) -> None:
    """The rebuild skips an event that the services made a dead letter, and reports it."""
    order, event = str(uuid.uuid4()), PaymentCanceled(version=1, occur_time=timestamp(datetime.now(UTC)))
    event.order_id = order
    event.refunded_amount.units = 10**15  # more than an amount may be

    async def publish(js: Any) -> int:
        headers = {"ce-id": order, "ce-subject": order}
        return int((await js.publish(event.DESCRIPTOR.full_name, event.SerializeToString(), headers=headers)).seq)

    number = in_jetstream(hotel, publish)
    wait_for(lambda: len(letters(hotel).get(order, [])) == 2)  # order_svc and mypage_svc listen to it

    rebuilt = gotohotel(hotel.stack, "rebuild")

    assert rebuilt.returncode == 0, rebuilt.stderr
    assert "can't be applied" in rebuilt.stdout
    gotohotel(hotel.stack, "dead-letters", "drop", *map(str, letters(hotel)[order]))
    in_jetstream(hotel, lambda js: js.delete_msg("EVENTS", number))


def test_a_rebuild_refuses_to_forget_what_the_stream_has_lost(hotel: Hotel, guest: Client) -> None:
    """If pages contain events that the stream has lost, the rebuild fails and the pages stay as they are."""
    order = hotel.order(guest)["id"]
    page = hotel.page_with(order, status="PAID", reservationStatus="RECEIVED")
    fact = '{"lost/1": {"event": "Ordered", "time": "2026-01-01T00:00:00+00:00"}}'
    query(hotel, "mypage_svc", "UPDATE mypages SET facts = facts || $2::jsonb WHERE order_id = $1", order, fact)

    refused = gotohotel(hotel.stack, "rebuild")

    query(hotel, "mypage_svc", "UPDATE mypages SET facts = facts - 'lost/1' WHERE order_id = $1", order)
    assert refused.returncode == 1
    assert "1 pages know of events that the stream has lost" in refused.stderr
    assert hotel.page_with(order) == page
    assert gotohotel(hotel.stack, "rebuild").returncode == 0


def test_a_rebuild_waits_for_nobody_and_runs_once(hotel: Hotel, guest: Client) -> None:
    """My page is served while a rebuild waits for a dump that locks the table. A second rebuild is refused."""
    order = hotel.order(guest)["id"]
    hotel.page_with(order, reservationStatus="RECEIVED")

    async def hold() -> tuple[set[int], str, str]:
        dump = await asyncpg.connect(hotel.stack.database_url("mypage_svc", "postgres"))
        looker = hotel.caller(subject=guest.subject)
        try:
            await dump.execute("BEGIN")
            await dump.fetch("SELECT * FROM mypages")
            first = asyncio.create_task(asyncio.to_thread(separately, hotel.stack, "rebuild"))
            seen = set()
            for _ in range(12):
                answer = await asyncio.to_thread(looker.request, "GET", f"/mypages/{order}")
                seen.add(answer.status_code)
                await asyncio.sleep(0.3)
            second = await asyncio.to_thread(separately, hotel.stack, "rebuild")
            await dump.execute("ROLLBACK")
            return seen, second.stderr, (await first).stdout
        finally:
            await dump.close()

    seen, second, first = asyncio.run(hold())

    assert seen == {200}
    assert "The archive is in use" in second
    assert "My page was rebuilt" in first


def test_a_part_that_is_away_is_said_in_a_sentence(hotel: Hotel) -> None:
    """Each command prints one sentence instead of a traceback."""
    for part, commands in (
        ("nats", (("dead-letters", "list"), ("rebuild",), ("audit",))),
        ("postgres", (("republish", "--from", "2026-01-01", "--to", "2100-01-01"), ("rebuild",), ("audit",))),
    ):
        hotel.stack.stop(part)
        try:
            done = [gotohotel(hotel.stack, *command) for command in commands]
            done.append(separately(hotel.stack, *commands[-1]))  # nothing more is printed when its process ends
        finally:
            hotel.stack.start(part)
        assert {each.returncode for each in done} == {1}
        assert all(re.fullmatch(r"gotohotel: .*can't be reached.*\n", each.stderr) for each in done), done
    wait_for(lambda: hotel.caller().request("GET", "/orders").is_success)


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (("dead-letters", "show", "999999"), 1, "There is no dead letter 999999"),
        (("dead-letters", "show", "0"), 1, "There is no dead letter 0"),
        (("dead-letters",), 2, "Usage: "),
        (("republish", "--from", "yesterday", "--to", "2100-01-01"), 2, "'yesterday' is no time"),
        (("republish", "--from", "2100-01-01"), 2, "--to"),
        (("republish", "--from", "2026-02-01", "--to", "2026-01-01"), 1, "There is no time between"),
    ],
)
def test_what_does_not_exist_is_said_in_a_sentence(
    hotel: Hotel, arguments: tuple[str, ...], status: int, said: str
) -> None:
    """The command prints an error message instead of a traceback."""
    done = gotohotel(hotel.stack, *arguments)

    assert done.returncode == status
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_dead_letters_are_redriven_by_service_and_reason(hotel: Hotel) -> None:
    """After a bad release, all dead letters of one service with one reason are redriven, and no others."""
    healthy = hotel.order(hotel.caller())["id"]
    # Now both have handled an event: failures of earlier tests no longer count towards those that make a service pause.
    hotel.page_with(healthy, reservationStatus="RECEIVED")
    guests = [hotel.caller(subject=f"poisoned-{number}") for number in range(2)]
    rule = "ALTER TABLE {} ADD CONSTRAINT {} CHECK ({} NOT LIKE 'poisoned-%') NOT VALID"
    query(hotel, "mypage_svc", rule.format("mypages", "bad_release", "owner"))
    query(hotel, "reservation_svc", rule.format("reservations", "another_reason", "booking ->> 'name'"))
    try:
        orders = [hotel.order(guest, name=guest.subject)["id"] for guest in guests]
        wait_for(lambda: all(len(letters(hotel).get(order, [])) == 3 for order in orders))
    finally:
        query(hotel, "mypage_svc", "ALTER TABLE mypages DROP CONSTRAINT bad_release")
        query(hotel, "reservation_svc", "ALTER TABLE reservations DROP CONSTRAINT another_reason")

    none = gotohotel(hotel.stack, "dead-letters", "redrive", "--all", "--service", "order_svc")
    some = gotohotel(
        hotel.stack, "dead-letters", "redrive", "--all", "--service", "mypage_svc", "--reason", "bad_release"
    )

    assert none.stdout == "0 dead letters are on their way again.\n"
    assert "4 dead letters are on their way again." in some.stdout
    wait_for(lambda: all(len(letters(hotel).get(order, [])) == 1 for order in orders))
    for order in orders:
        hotel.page_with(order, status="PAID")
    for bad in (("redrive",), ("redrive", "7", "--all"), ("redrive", "7", "--service", "pay_svc"), ("drop",)):
        assert gotohotel(hotel.stack, "dead-letters", *bad).returncode != 0
    assert gotohotel(hotel.stack, "dead-letters", "redrive", "--all").returncode == 0
    for order in orders:
        hotel.page_with(order, reservationStatus="RECEIVED")


def test_a_full_stream_is_shown_and_grows(hotel: Hotel, guest: Client) -> None:
    """After the command that the log names, the waiting events are published."""
    shown = gotohotel(hotel.stack, "stream").stdout
    assert re.search(r"^order_svc +\d+ *$", shown, re.MULTILINE), shown
    size = re.search(r"of (\d+) MiB", shown)
    assert size is not None

    async def shrink(js: Any) -> None:
        stream = await js.stream_info("EVENTS")
        await js.update_stream(stream.config.evolve(max_bytes=stream.state.bytes))

    in_jetstream(hotel, shrink)
    order = hotel.order(guest)["id"]
    waiting = "SELECT count(*) FROM outbox WHERE aggregate_id = $1 AND published_at IS NULL"
    assert query(hotel, "order_svc", waiting, order) == 1

    grown = gotohotel(hotel.stack, "stream", "grow", "--mib", size[1])

    assert grown.returncode == 0, grown.stderr
    hotel.page_with(order, reservationStatus="RECEIVED")
    again = gotohotel(hotel.stack, "stream", "grow", "--mib", size[1])
    assert (again.returncode, "does not shrink" in again.stderr) == (1, True)
    too_much = gotohotel(hotel.stack, "stream", "grow", "--mib", str(10**9))
    assert (too_much.returncode, "The disk has" in too_much.stderr) == (1, True)


def test_old_events_move_to_the_archive_from_which_audit_and_rebuild_read(hotel: Hotel, guest: Client) -> None:
    """Afterwards the stream is nearly empty and no event is missing, even if a first move was interrupted."""
    orders = [hotel.order(guest)["id"] for _ in range(3)]
    pages = [hotel.page_with(order, status="PAID", reservationStatus="RECEIVED") for order in orders]
    before = in_jetstream(hotel, lambda js: js.stream_info("EVENTS")).state.messages
    assert gotohotel(hotel.stack, "stream", "archive").stdout.startswith("0 events have moved")  # none is 90 days old
    broken_off = (
        "import os, sys; os.environ['GOTOHOTEL_HOME'] = sys.argv[1]\n"
        "from nats.js import JetStreamContext\n"
        "JetStreamContext.purge_stream = lambda *_, **__: os._exit(9)\n"
        "from ops.__main__ import main\n"
        "main(['stream', 'archive', '--older-than-days', '0'])\n"
    )
    command = [sys.executable, "-c", broken_off, str(hotel.stack.home)]
    assert subprocess.run(command, timeout=60, check=False).returncode == 9
    assert in_jetstream(hotel, lambda js: js.stream_info("EVENTS")).state.messages == before
    assert not any(audit.check(hotel.stack).values())  # the events are in both places and count once

    moved = gotohotel(hotel.stack, "stream", "archive", "--older-than-days", "0")

    assert moved.returncode == 0, moved.stderr
    left = in_jetstream(hotel, lambda js: js.stream_info("EVENTS")).state.messages
    assert left < before / 2
    modes = {path.stat().st_mode & 0o077 for path in (hotel.stack.archive, *hotel.stack.archive.glob("*.gz"))}
    assert modes == {0}  # they hold guests' names and phone numbers
    assert not any(audit.check(hotel.stack).values())
    query(hotel, "mypage_svc", "DELETE FROM mypages WHERE order_id = $1", orders[0])
    rebuilt = gotohotel(hotel.stack, "rebuild")
    assert rebuilt.returncode == 0, rebuilt.stderr
    assert [hotel.page_with(order) for order in orders] == pages
    late = hotel.order(guest)["id"]
    hotel.page_with(late, reservationStatus="RECEIVED")
    assert re.search(r"^archived +[1-9]", gotohotel(hotel.stack, "stream").stdout, re.MULTILINE)


def test_a_damaged_archive_is_said_so(hotel: Hotel, guest: Client) -> None:
    """The audit and the rebuild fail if they can't read a file of the archive."""
    hotel.page_with(hotel.order(guest)["id"], status="PAID", reservationStatus="RECEIVED")
    wait_for(lambda: "0 events" not in gotohotel(hotel.stack, "stream", "archive", "--older-than-days", "0").stdout)
    (archived, *_) = sorted(hotel.stack.archive.glob("*.gz"))
    whole = archived.read_bytes()
    archived.write_bytes(whole[: len(whole) // 2])
    try:
        done = [gotohotel(hotel.stack, command) for command in ("audit", "rebuild")]
    finally:
        archived.write_bytes(whole)

    assert {each.returncode for each in done} == {1}
    assert all("can't be read after" in each.stderr for each in done), done
