"""The comparisons with another commit and with bare calls, and the long load, on the stack of the tests."""

import asyncio
import re
import subprocess
import sys
from pathlib import Path

import asyncpg
import pytest

from bench import against, floor, load, steady
from ops.errors import StackError
from ops.services import SERVICES
from tests.conftest import ROOT, Client, Hotel, wait_for


def test_rounds_are_compared(
    hotel: Hotel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each contestant in turn; the report has the ratios, and a chart with every process."""
    monkeypatch.setattr(against, "CHART", tmp_path / "chart.svg")
    contestants = [against.Contestant(name, ROOT, hotel.stack) for name in ("here", "there")]
    contestants[0].open_room_type()
    assert contestants[0].pids() == {name: pid for name, _, pid, _ in hotel.stack.status()}

    found = asyncio.run(against.contest(contestants, rounds=1, seconds=1, clients=1, advance=lambda _: None))
    against.report(found["here"], found["there"], "there")

    assert all(rounds[0].rate > 0 and rounds[0].all_cpu > 0 for rounds in found.values())
    printed = capsys.readouterr().out
    assert "orders/s: median" in printed
    assert "CPU per order: median" in printed
    assert all(name in against.CHART.read_text() for name in SERVICES)


def test_a_single_client_calls_for_several_guests() -> None:
    """One guest may make fifty calls a second: on a fast machine, a client that is alone makes more."""
    assert load.guests_of(1, str.upper) == [[f"BENCH-{number}" for number in range(64)]]
    assert [len(guests) for guests in load.guests_of(48, str)] == [2] * 16 + [1] * 32


def test_a_ratio_above_one_is_ours(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Twice the orders, at half the CPU."""
    monkeypatch.setattr(against, "CHART", tmp_path / "chart.svg")
    against.report([against.Round(200, 5, {"order_svc": 3})], [against.Round(100, 9, {"order_svc": 6})], "abc123")

    printed = capsys.readouterr().out
    assert "orders/s: median 2.00 × abc123" in printed
    assert "CPU per order: median 0.50 × abc123" in printed


def test_a_commit_that_does_not_exist_is_said_so() -> None:
    """Nothing is checked out."""
    with pytest.raises(StackError, match="no commit 'nothing'"):
        against.check_out("nothing")


def test_bare_calls_pass_the_same_gateway(hotel: Hotel) -> None:
    """The stand-ins answer for order_svc and pay_svc, and store nothing; afterwards the hotel is as before."""
    wait_for(lambda: _books(hotel, hotel.caller()))  # pay_svc may still be ejected because of another test
    stored = _stored(hotel)
    contestant = against.Contestant("here", ROOT, hotel.stack)
    contestant.open_room_type()
    with floor.replaced(contestant) as bare:
        assert all(bare.pids()[name] == process.pid for name, process in bare.stand_ins.items())
        found = asyncio.run(against.contest([bare], rounds=1, seconds=1, clients=64, advance=lambda _: None))

    [only] = found["here"]
    assert only.rate > 0
    assert all(only.cpu[name] > 0 for name in floor.REPLACED)
    assert _stored(hotel) == stored
    wait_for(lambda: _books(hotel, hotel.caller()))
    assert _stored(hotel)[1] > stored[1]  # the real pay_svc has charged it


def test_each_part_of_a_long_load_has_its_rate_and_memory(hotel: Hotel, capsys: pytest.CaptureFixture[str]) -> None:
    """Ten lines with rates of orders that were really paid, in which every process has memory."""
    contestant = against.Contestant("here", ROOT, hotel.stack)
    contestant.open_room_type()
    wait_for(lambda: _books(hotel, hotel.caller()))  # pay_svc may still be ejected because of another test
    paid = _stored(hotel)[1]

    asyncio.run(steady.in_parts(hotel.stack, seconds=5, clients=4))

    head, *lines = capsys.readouterr().out.splitlines()
    parts = [re.split(r" {2,}", line.strip()) for line in lines]
    assert len(parts) == steady.PARTS
    names = [name for name, _, _, _ in hotel.stack.status()]
    assert all(f"{name} MB" in head for name in names)
    rates = [float(part[1]) for part in parts]
    assert all(rate > 0 for rate in rates)
    assert sum(rates) * 5 / steady.PARTS < _stored(hotel)[1] - paid  # less those of the warm-up
    assert all(int(memory) > 0 for part in parts for memory in part[5:])
    assert all(len(part) == 5 + len(names) for part in parts)


def test_two_measurements_at_once_are_refused() -> None:
    """Otherwise one of them would be ignored."""
    command = [sys.executable, "-m", "bench", "--steady", "10", "--floor"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)

    assert done.returncode == 1
    assert "exclude each other" in done.stderr


def test_a_part_without_an_order_is_said_so(hotel: Hotel, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is divided by zero; the heading of the table is printed all the same."""
    with pytest.raises(StackError, match="too short"):
        asyncio.run(steady.in_parts(hotel.stack, seconds=0, clients=1))

    assert "orders/s" in capsys.readouterr().out


def _books(hotel: Hotel, guest: Client) -> bool:
    """Whether an order is placed and paid."""
    answer = guest.request("POST", "/orders", json=hotel.booking())
    return answer.is_success and answer.json()["status"] == "PAID"


def _stored(hotel: Hotel) -> list[int]:
    """How many orders and payments there are."""

    async def count(service: str, table: str) -> int:
        connection = await asyncpg.connect(hotel.stack.database_url(service, "postgres"))
        found: int = await connection.fetchval(f"SELECT count(*) FROM {table}")
        await connection.close()
        return found

    return [asyncio.run(count("order_svc", "orders")), asyncio.run(count("pay_svc", "payments"))]
