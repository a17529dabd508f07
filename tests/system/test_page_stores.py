"""My page in NATS, on a stack of its own: serving, outages, rebuilding there, and moving between the stores.

Long because all of it needs that stack, which takes long to start.
"""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from ops import audit, nats_server
from ops.backup import back_up, restore
from ops.errors import StackError
from ops.stack import Stack
from tests.command_line import gotohotel
from tests.conftest import Client, Hotel, freeze, wait_for
from tests.gateways import statistic
from tests.mypage_svc.conftest import keys_in
from tests.system.test_forget import forget
from tests.watching import watching

ORDERS = 25


@pytest.fixture(scope="module")
def nats_hotel() -> Iterator[Hotel]:
    """A hotel whose pages are in NATS. After the last test the audit must find nothing."""
    home = Path(tempfile.mkdtemp(prefix="gotohotel-"))
    stack = Stack.on_free_ports(home)
    try:
        up(stack, "nats")
        hotel = Hotel(stack)
        yield hotel
        hotel.close()
        assert not {number: found for number, found in audit.check(stack).items() if found}
    finally:
        stack.down()
        shutil.rmtree(home)


def up(stack: Stack, store: str) -> None:
    """Starts the stack with this setting, and with a provider of messages."""
    os.environ |= {"KAKAO": "fake", "MYPAGE_STORE": store}
    try:
        stack.up()
    finally:
        del os.environ["KAKAO"], os.environ["MYPAGE_STORE"]


def place(hotel: Hotel) -> str:
    """Where the pages are."""
    return str(asyncio.run(fetch(hotel, "SELECT place FROM public.pages_in")))


async def fetch(hotel: Hotel, statement: str) -> Any:
    """One value of mypage_svc's database."""
    connection = await asyncpg.connect(hotel.stack.database_url("mypage_svc", "postgres"))
    try:
        return await connection.fetchval(statement)
    finally:
        await connection.close()


def booked(hotel: Hotel, guest: Client, count: int) -> list[str]:
    """Orders of a guest, newest first, whose pages are complete."""
    orders = [hotel.order(guest, phoneNo="010-1234-0000")["id"] for _ in range(count)]
    for order in orders:
        hotel.page_with(order, status="PAID", reservationStatus="RECEIVED")
    return orders[::-1]


def listed(caller: Client, size: int = 7) -> list[str]:
    """All orders that ListMyPages has for a caller, page by page."""
    found, token = [], ""
    while True:
        answer = caller.get(f"/mypages?pageSize={size}&pageToken={token}")
        found += [page["orderId"] for page in answer["mypages"]]
        if not (token := answer.get("nextPageToken", "")):
            return found


def test_the_demo_passes(nats_hotel: Hotel) -> None:
    """With its audit, which reads the pages in NATS. It leaves a running stack running."""
    assert place(nats_hotel) == "mypages_a"
    told = gotohotel(nats_hotel.stack, "demo")

    assert told.returncode == 0, told.stdout
    assert "A7   holds" in told.stdout
    assert nats_hotel.stack.is_up


def test_a_guest_follows_and_lists_bookings(nats_hotel: Hotel) -> None:
    """Own ones only, newest first; a watch shows each change, and the messages."""
    guest, other = nats_hotel.caller(), nats_hotel.caller()
    orders = booked(nats_hotel, guest, 10)
    assert listed(guest) == orders
    assert listed(other) == []
    assert other.request("GET", f"/mypages/{orders[0]}").status_code == 404
    assert [order for order in listed(nats_hotel.desk, size=200) if order in orders] == orders

    with watching(nats_hotel, orders[0], guest.token) as watch:
        nats_hotel.desk.post(f"/reservations/{orders[0]}:confirm")
        page = watch.until(status="CONFIRMED")[2]
        assert page["timeline"][0]["event"] == "Ordered"
    wait_for(lambda: _statuses(guest, orders[0]) == {"DELIVERED"})


def _statuses(guest: Client, order: str) -> set[str]:
    return {each["status"] for each in guest.get(f"/mypages/{order}")["notifications"]}


def test_the_audit_sees_what_is_missing_in_nats(nats_hotel: Hotel) -> None:
    """Facts that are gone from a page: of the order, and of the reservation."""
    guest = nats_hotel.caller()
    gone, poorer = booked(nats_hotel, guest, 2)

    async def damage() -> None:
        async with nats_server.as_operator(nats_hotel.stack.nats_url()) as js:
            name = await fetch(nats_hotel, "SELECT place FROM pages_in")
            bucket, keys = await js.key_value(name), await keys_in(js, name)
            for order, lost in ((gone, "order/1"), (poorer, "reservation/1")):
                key = next(key for key in keys if key.startswith("page.") and order in key)
                page = json.loads((await bucket.get(key)).value or b"")
                del page["facts"][lost]
                await bucket.put(key, json.dumps(page).encode())

    asyncio.run(damage())
    found = audit.check(nats_hotel.stack, patience_seconds=0)["A7"]
    assert any(gone in violation for violation in found)
    assert any(poorer in violation for violation in found)
    assert gotohotel(nats_hotel.stack, "rebuild").returncode == 0  # which repairs it
    nats_hotel.page_with(gone, reservationStatus="RECEIVED")


def test_the_audit_sees_damage_and_a_page_that_is_in_no_list(nats_hotel: Hotel) -> None:
    """It does not end with an error of its own."""
    guest = nats_hotel.caller()
    damaged, unlisted, odd = booked(nats_hotel, guest, 3)

    async def damage() -> None:
        async with nats_server.as_operator(nats_hotel.stack.nats_url()) as js:
            name = await fetch(nats_hotel, "SELECT place FROM pages_in")
            bucket, keys = await js.key_value(name), await keys_in(js, name)
            await bucket.put(next(key for key in keys if key.startswith("page.") and damaged in key), b"{")
            page = next(key for key in keys if key.startswith("page.") and odd in key)
            value = ((await bucket.get(page)).value or b"").replace(b'"name"', b'"noname"').replace(b'"80000"', b'"x"')
            await bucket.put(page, value)
            lost = next(key for key in keys if key.startswith("owner.") and unlisted in key)
            await js.purge_stream(f"KV_{name}", subject=f"$KV.{name}.{lost}")

    asyncio.run(damage())
    found = audit.check(nats_hotel.stack, patience_seconds=0)["A7"]
    assert f"order {damaged} has no page" in found
    assert f"My page {unlisted} is missing in a list" in found
    assert f"order {odd} has no page" in found
    assert gotohotel(nats_hotel.stack, "rebuild").returncode == 0
    assert listed(guest) == [damaged, unlisted, odd]


def test_nobody_writes_to_the_table_and_nothing_stays_in_it(nats_hotel: Hotel) -> None:
    """A service with another setting has no rights; what a killed move has left is seen, and removed."""
    rights = "SELECT has_table_privilege('mypage_svc', 'mypages', 'INSERT, SELECT')"
    assert asyncio.run(fetch(nats_hotel, rights)) is False
    asyncio.run(fetch(nats_hotel, "INSERT INTO mypages VALUES (uuidv7(), 'left', '{}', now())"))
    assert any("1 pages are left" in each for each in audit.check(nats_hotel.stack, patience_seconds=0)["A7"])
    gotohotel(nats_hotel.stack, "rebuild")
    assert asyncio.run(fetch(nats_hotel, "SELECT count(*) FROM mypages")) == 0


def test_while_nats_is_away_no_page_is_wrong(nats_hotel: Hotel) -> None:
    """Reading says so with 503, booking goes on, and afterwards the pages have everything."""
    guest = nats_hotel.caller()
    [order] = booked(nats_hotel, guest, 1)
    nats_hotel.stack.stop("nats")
    try:
        assert guest.request("GET", f"/mypages/{order}").status_code == 503
        assert guest.request("GET", "/mypages").status_code == 503
        late = nats_hotel.order(guest)["id"]
        assert guest.get("/healthz")["status"] == "SERVING"
    finally:
        nats_hotel.stack.start("nats")
    nats_hotel.page_with(late, status="PAID", reservationStatus="RECEIVED")
    assert listed(guest) == [late, order]


def test_a_start_before_nats_answers_refuses_no_call(nats_hotel: Hotel) -> None:
    """As after a restore, or in a rollout: the service accepts calls a moment before it has reached NATS."""
    guest = nats_hotel.caller()
    [order] = booked(nats_hotel, guest, 1)
    nats = next(number for name, _, number, _ in nats_hotel.stack.status() if name == "nats")
    nats_hotel.stack.stop("mypage_svc")
    freeze(nats)
    try:
        nats_hotel.stack.start("mypage_svc")
        with ThreadPoolExecutor(1) as pool:
            page = pool.submit(guest.request, "GET", f"/mypages/{order}")
            wait_for(lambda: page.done() or statistic(nats_hotel.stack, "cluster.mypage_svc.upstream_rq_active") > 0)
            wait([page], timeout=0.5)  # mypage_svc has the call
            assert not page.done(), page.result().text
            os.kill(nats, signal.SIGCONT)
            assert page.result().status_code == 200, page.result().text
    finally:
        os.kill(nats, signal.SIGCONT)


def test_a_killed_service_leaves_pages_and_messages_whole(nats_hotel: Hotel) -> None:
    """Between the write in NATS and the commit in PostgreSQL too: the fixture's audit counts the messages."""
    guest = nats_hotel.caller()
    orders = []
    for _ in range(5):
        orders += [nats_hotel.order(guest, phoneNo="010-1234-0000")["id"] for _ in range(3)]
        wait_for(lambda: pid(nats_hotel) > 0)
        os.kill(pid(nats_hotel), signal.SIGKILL)
    for order in orders:
        nats_hotel.page_with(order, status="PAID", reservationStatus="RECEIVED")
    assert listed(guest) == orders[::-1]


def test_a_guest_is_forgotten_in_nats_too(nats_hotel: Hotel) -> None:
    """The page stays, without name and number."""
    guest = nats_hotel.caller()
    order = nats_hotel.order(guest, card=None, phoneNo="010-1234-0000")["id"]
    guest.post(f"/orders/{order}:cancel")
    nats_hotel.page_with(order, name="Guest", status="CANCELED")

    done = forget(nats_hotel, "--subject", guest.subject)

    assert done.returncode == 0, done.stderr
    assert guest.get(f"/mypages/{order}")["name"] == ""


def pid(hotel: Hotel) -> int:
    """The process of mypage_svc; 0 while it is being restarted."""
    return next(number for name, _, number, _ in hotel.stack.status() if name == "mypage_svc")


SLOWLY = """
import ops.rebuild.history
from ops.__main__ import main
ops.rebuild.history.FETCH = 1
main(["rebuild"])
"""


def test_a_rebuild_that_was_killed_goes_on(nats_hotel: Hotel) -> None:
    """It does not begin again, and what is served stays right under it."""
    guest = nats_hotel.caller()
    orders = booked(nats_hotel, guest, ORDERS)
    timelines = [guest.get(f"/mypages/{order}")["timeline"] for order in orders]
    environment = {**os.environ, "GOTOHOTEL_HOME": str(nats_hotel.stack.home)}
    slow = subprocess.Popen([sys.executable, "-c", SLOWLY], env=environment)
    before = place(nats_hotel)
    wait_for(lambda: _progress(nats_hotel) > 10)
    freeze(slow.pid)  # in the middle, while other commands run
    archived = gotohotel(nats_hotel.stack, "stream", "archive", "--older-than-days", "0")
    assert "The archive is in use" in archived.stderr  # events that move meanwhile would be missed
    slow.kill()
    slow.wait()
    assert place(nats_hotel) == before

    rebuilt = gotohotel(nats_hotel.stack, "rebuild")

    assert rebuilt.returncode == 0, rebuilt.stderr
    assert "of them before it was interrupted" in rebuilt.stdout
    assert place(nats_hotel) != before
    assert [guest.get(f"/mypages/{order}")["timeline"] for order in orders] == timelines
    assert listed(guest) == orders


def _progress(hotel: Hotel) -> int:
    """How many events an unfinished rebuild has read."""
    try:
        return int(asyncio.run(fetch(hotel, "SELECT events FROM rebuilt.progress")) or 0)
    except asyncpg.UndefinedTableError:
        return 0


def test_a_backup_brings_the_pages_back(nats_hotel: Hotel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages in NATS are not copied: the events are, and a restore rebuilds the pages from them."""
    guest = nats_hotel.caller()
    order = nats_hotel.order(guest)["id"]
    page = nats_hotel.page_with(order, status="PAID", reservationStatus="RECEIVED")
    folder = Path(tempfile.mkdtemp(prefix="gotohotel-"))
    second = Stack.on_free_ports(folder / "home")
    monkeypatch.setenv("MYPAGE_STORE", "nats")
    try:
        back_up(nats_hotel.stack, folder / "backup")
        restore(second, folder / "backup")
        client = Client(second, subject=guest.subject, role="guest")

        wait_for(lambda: client.get(f"/mypages/{order}")["timeline"] == page["timeline"])

        assert order in [each["orderId"] for each in client.get("/mypages")["mypages"]]
        client.close()
    finally:
        second.down()
        shutil.rmtree(folder)


def test_pages_move_between_the_stores(nats_hotel: Hotel) -> None:
    """Nothing is lost on the way there and back, whatever is booked before the service has its new setting; a service
    whose setting does not fit does not start.
    """
    guest = nats_hotel.caller()
    orders = booked(nats_hotel, guest, 5)
    for store in ("postgres", "nats"):
        moved = gotohotel(nats_hotel.stack, "rebuild", "--store", store)
        assert moved.returncode == 0, moved.stderr
        assert place(nats_hotel).startswith("postgres" if store == "postgres" else "mypages_")
        orders.insert(0, nats_hotel.order(guest, phoneNo="010-1234-0000")["id"])
        nats_hotel.stack.down()
        if store == "postgres":
            with pytest.raises(StackError, match="MYPAGE_STORE"):
                up(nats_hotel.stack, "nats")
            nats_hotel.stack.down()
        up(nats_hotel.stack, store)

        nats_hotel.page_with(orders[0], status="PAID", reservationStatus="RECEIVED")
        assert listed(guest) == orders
        assert not {number: found for number, found in audit.check(nats_hotel.stack).items() if found}
