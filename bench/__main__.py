"""Runs the bench on a stack of its own and prints the report."""

import asyncio
import shutil
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import asyncpg
import typer
import uvloop
from rich.table import Table

from bench import load, pgbench, reads, rebuilding, usage
from bench.against import against
from bench.floor import floor
from bench.replicas import against_one
from bench.scale import scale
from bench.steady import steady
from bench.watches import GUESTS, WATCHES_OF_ONE, Watching
from ops import console
from ops.errors import StackError
from ops.stack import Stack

IDLE_SECONDS = 5


def main(
    seconds: Annotated[
        int, typer.Option(min=1, help="Of full load; half load, each kind of reads and pgbench take as long.")
    ] = 15,
    clients: Annotated[int, typer.Option(min=1, help="Connections, of the load and of pgbench.")] = 32,
    commit: Annotated[str, typer.Option("--against", help="Loads this code and that of a commit in turn.")] = "",
    orders: Annotated[int, typer.Option("--scale", min=0, help="Past orders in every table, against none.")] = 0,
    replicas: Annotated[int, typer.Option(min=0, help="Of each service and the gateway, against one of each.")] = 0,
    bare: Annotated[bool, typer.Option("--floor", help="Against the same calls without database and events.")] = False,
    long: Annotated[int, typer.Option("--steady", min=0, help="Seconds of full load, in ten parts.")] = 0,
    rounds: Annotated[int, typer.Option(min=1, help="Of a comparison.")] = 6,
) -> None:
    """Measures orders per second: alone, for a long time, or against another commit, full tables, several replicas, or
    bare calls.
    """
    if sum(map(bool, (commit, orders, replicas, bare, long))) > 1:
        sys.exit("bench: --against, --scale, --replicas, --floor and --steady exclude each other")
    try:
        if commit:
            against(commit, rounds=rounds, seconds=seconds, clients=clients)
        elif replicas:
            against_one(replicas, seconds=seconds, clients=clients)
        elif orders:
            scale(orders, rounds=rounds, seconds=seconds, clients=clients)
        elif long:
            steady(seconds=long, clients=clients)
        elif bare:
            floor(rounds=rounds, seconds=seconds, clients=clients)
        else:
            _alone(clients=clients, seconds=seconds)
    except StackError as error:
        sys.exit(f"bench: {error}")


def _alone(*, clients: int, seconds: int) -> None:
    home = Path(".run/bench")
    shutil.rmtree(home, ignore_errors=True)
    stack = Stack.on_free_ports(home)
    try:
        stack.up()
        uvloop.run(_bench(stack, clients=clients, seconds=seconds))
    finally:
        stack.down()


async def _bench(stack: Stack, *, clients: int, seconds: int) -> None:
    load.open_room_type(stack.gateway_url, stack.token(subject="bench", role="desk"), pgbench.ROOM_TYPE)
    pids = {name: pid for name, _, pid, _ in stack.status()}
    guests = load.guests_of(clients, lambda subject: stack.token(subject=subject, role="guest"))
    gateway = stack.ports["gateway"]
    await load.run(gateway, guests, pgbench.ROOM_TYPE, seconds=2)  # warm up
    await load.caught_up(stack)

    cpu, began = usage.cpu_seconds(pids), datetime.now(tz=UTC)
    with console.progress("full load, half load, reads, watches, pgbench, rebuild", 6) as advance:
        memory, full = await asyncio.gather(
            _peak_memory(pids, seconds), load.run(gateway, guests, pgbench.ROOM_TYPE, seconds=seconds)
        )
        advance(1)
        drain_seconds = await load.caught_up(stack)
        used = {name: after - cpu[name] for name, after in usage.cpu_seconds(pids).items()}
        full_lag = await _lag(stack, began)

        began = datetime.now(tz=UTC)
        half = await load.run(gateway, guests, pgbench.ROOM_TYPE, seconds=seconds, orders_per_second=full.rate / 2)
        await load.caught_up(stack)
        half_lag = await _lag(stack, began)
        advance(1)

        of_reads = await reads.measure(stack, pids, pgbench.ROOM_TYPE, clients=clients, seconds=seconds)
        advance(1)

        watching = Watching(stack, pgbench.ROOM_TYPE)
        await watching.open()
        idle_seconds = min(IDLE_SECONDS, seconds)
        idle = usage.cpu_seconds(pids)
        await asyncio.sleep(idle_seconds)
        idle = {name: after - idle[name] for name, after in usage.cpu_seconds(pids).items()}
        await asyncio.gather(
            load.run(gateway, guests, pgbench.ROOM_TYPE, seconds=seconds, orders_per_second=full.rate / 2),
            watching.pay(seconds),
        )
        watched_memory = usage.memory_bytes(pids)
        await watching.close()
        advance(1)
        transactions = await pgbench.measure(stack, clients=clients, seconds=seconds)
        advance(1)
        rates = await rebuilding.measure(stack)
        advance(1)
    for outcome in (full, half):
        if outcome.others:
            print(f"{len(outcome.others)} orders were not paid, for example: {outcome.others[0]}")

    results = console.table("", "p50", "p99", right=("p50", "p99"))
    results.add_row(f"orders, full load: {full.rate:.0f} /s, {clients} clients, {full.seconds:.0f} s")
    _add_times(results, full, full_lag)
    results.add_row(f"all on My page after {drain_seconds:.1f} s")
    results.add_row(f"orders, half load: {half.rate:.0f} /s")
    _add_times(results, half, half_lag)
    results.add_row(f"{GUESTS * WATCHES_OF_ONE} watches, half load")
    p50, p99 = (f"{load.percentile(watching.delays, percent):.0f} ms" for percent in (50, 99))
    results.add_row("  from an event to the watch", p50, p99)
    console.show(results)
    part = ("mypage_svc", "envoy", "postgres")
    shares = ", ".join(f"{name} {100 * idle[name] / idle_seconds:.1f} %" for name in part)
    megabytes = ", ".join(f"{name} {watched_memory[name] / 1e6:.0f}" for name in part)
    print(f"\nthe same watches without load: {shares} of a core; MB under load: {megabytes}\n")
    per_process = console.table("process", "CPU ms/order", "peak MB", right=("CPU ms/order", "peak MB"))
    for name, value in (*used.items(), ("all", sum(used.values()))):
        megabytes = f"{memory[name] / 1e6:.0f}" if name in memory else "-"
        per_process.add_row(name, f"{1000 * value / len(full.latencies):.2f}", megabytes)
    console.show(per_process)
    shown = console.table(
        "reads, full load", "calls/s", "p50", "p99", "CPU ms/call", right=("calls/s", "p50", "p99", "CPU ms/call")
    )
    for rpc, each in of_reads.items():
        p50, p99 = (f"{load.percentile(each.latencies, percent):.1f} ms" for percent in (50, 99))
        shown.add_row(rpc, f"{each.rate:,.0f}", p50, p99, f"{each.cpu:.2f}")
    print()
    console.show(shown)
    print(f"\n{'pgbench, same statements':<28} {transactions:8.0f} transactions/s")
    print(f"{'ratio':<28} {full.rate / transactions:8.3f}\n")
    rebuilt = console.table("My page rebuilt", "per second", right=("per second",))
    for what, rate in rates.items():
        rebuilt.add_row(what, f"{rate:,.0f}")
    console.show(rebuilt)


def _add_times(results: Table, outcome: load.Outcome, lag: tuple[float, float]) -> None:
    results.add_row("  latency", f"{outcome.percentile(50):.1f} ms", f"{outcome.percentile(99):.1f} ms")
    results.add_row("  lag to My page", f"{lag[0]:.0f} ms", f"{lag[1]:.0f} ms")


async def _peak_memory(pids: dict[str, int], seconds: int) -> dict[str, int]:
    peak = dict.fromkeys(pids, 0)
    for _ in range(3):
        await asyncio.sleep(seconds / 4)
        now = await asyncio.to_thread(usage.memory_bytes, pids)
        peak = {name: max(peak[name], now[name]) for name in pids}
    return peak


async def _lag(stack: Stack, since: datetime) -> tuple[float, float]:
    """From a payment to the transaction that shows it on My page, of payments since then: p50 and p99 in ms."""
    payments = await asyncpg.connect(stack.database_url("pay_svc", "postgres"))
    pages = await asyncpg.connect(stack.database_url("mypage_svc", "postgres"))
    rows = await payments.fetch("SELECT event_id, occurred_at FROM outbox WHERE occurred_at >= $1", since)
    handled = await pages.fetch(
        "SELECT event_id, received_at FROM inbox WHERE event_id = ANY($1::uuid[])", [row["event_id"] for row in rows]
    )
    await payments.close()
    await pages.close()
    received = {row["event_id"]: row["received_at"] for row in handled}
    lags = sorted((received[row["event_id"]] - row["occurred_at"]).total_seconds() * 1000 for row in rows)
    return lags[len(lags) // 2], lags[int(len(lags) * 0.99)]


if __name__ == "__main__":
    typer.run(main)
