"""One run of a scenario: its load, its nemesis, and the tools of scenarios."""

import asyncio
import dataclasses
import os
import random
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg

from chaos.links import GATEWAY
from chaos.load import FEW_ROOMS, GOOD, OK, RETRY_SECONDS, ROOMS, Caller, Load, Operation, a_stay
from chaos.nemesis import Nemesis, NotAsItMust, query, until
from chaos.target import Target
from ops import ports
from ops.configuration import PROCESSES

RATE = {"currencyCode": "KRW", "units": "1000"}
CAPACITIES = {ROOMS: 10_000, FEW_ROOMS: 3}


class Rig:
    """One run of one scenario."""

    def __init__(self, target: Target, *, name: str, seed: int, seconds: float | None) -> None:
        self.stack = target.stack
        self.name = name
        self.seed = seed
        self.nemesis = Nemesis(target.stack, target.links, target.replicas)
        self.chance = random.Random(f"{seed}/{name}")
        self.load = Load(target.stack, name=f"{name}-{seed}", seed=seed)
        self.history = self.load.history
        self.notes: list[str] = []
        self._seconds = seconds
        self._callers: dict[str, Caller] = {}

    def seconds(self, default: float) -> float:
        """How long a fault lasts: the command line's value, or else this one."""
        return self._seconds or default

    def caller(self, name: str, *, role: str = "guest") -> Caller:
        """A client beside the load."""
        if name not in self._callers:
            subject = f"{self.name}-{self.seed}-{name}"
            self._callers[name] = Caller(self.stack, subject=subject, role=role, history=self.history)
        return self._callers[name]

    async def close(self) -> None:
        """Closes the clients."""
        for caller in self._callers.values():
            await caller.close()

    def demand(self, holds: object, otherwise: str) -> None:
        """Raises NotAsItMust unless the condition holds."""
        if not holds:
            raise NotAsItMust(otherwise)

    async def open_rooms(self) -> None:
        """The room types of the load, on sale."""
        desk = self.caller("catalogue", role="desk")
        for room_type, capacity in CAPACITIES.items():
            await self.open_room_type(desk, room_type, capacity)

    async def open_room_type(self, desk: Caller, room_type: str, capacity: int) -> None:
        """One room type, on sale."""
        body = {"capacity": capacity, "maxGuests": 4, "nightlyRate": RATE}
        await desk.call("look", "PUT", f"/roomTypes/{room_type}", body)

        async def on_sale() -> bool:
            rooms = (await desk.look("/rooms")).answer.get("rooms") or []
            return room_type in [room["roomType"] for room in rooms]

        await until(on_sale, f"{room_type} is not on sale")

    async def sql(self, database: str, statement: str, *arguments: Any) -> Any:
        """One value of a service's database, or of the processor's ledger (`sandbox`)."""
        return await query(self.stack, database, statement, *arguments)

    async def order_status(self, order_id: str) -> str:
        """The order's status in order_svc's database."""
        return str(await self.sql("order_svc", "SELECT status FROM orders WHERE id = $1", order_id))

    async def order_is(self, order_id: str, status: str) -> bool:
        """Whether order_svc's database has this status."""
        return await self.order_status(order_id) == status

    async def books_paid(self, guest: Caller) -> bool:
        """Whether a booking is paid at once now."""
        return (await guest.book(**a_stay(self.chance), attempts=1)).is_paid

    @asynccontextmanager
    async def session(self, database: str) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
        """A database connection of the rig's own."""
        connection = await asyncpg.connect(self.stack.database_url(database, "postgres"))
        try:
            yield connection
        finally:
            await connection.close()

    async def charges(self, order_id: str) -> tuple[int, int]:
        """How many charges an order has in the processor's ledger, and how many of them are not refunded."""
        made, standing = await self.sql("sandbox", CHARGES, order_id)
        return made, standing

    async def received(self, order_ids: list[str]) -> None:
        """Waits until the desk has received these orders."""
        await until(lambda: self._are_received(order_ids), "the desk does not receive what was paid", seconds=60)

    async def _are_received(self, order_ids: list[str]) -> bool:
        count = "SELECT count(*) FROM reservations WHERE order_id = ANY($1::uuid[]) AND booking IS NOT NULL"
        return bool(await self.sql("reservation_svc", count, order_ids) == len(order_ids))

    async def works_again(self) -> None:
        """Waits until a booking is paid and reaches the desk; records how long the last fault had effects.

        Before that, the next fault would not be a separate one.
        """
        guest, desk = self.caller("probe"), self.caller("probe-desk", role="desk")
        began = time.monotonic()

        async def whole_way() -> bool:
            body = {"name": "probe", "roomType": ROOMS, "guestCnt": 1, "cardNo": GOOD, **a_stay(self.chance)}
            booked = await guest.probe("POST", "/orders", body)
            ends = time.monotonic() + 30
            while booked.is_paid and time.monotonic() < ends:
                if (await desk.probe("GET", f"/reservations/{booked.order_id}")).outcome == OK:
                    return True
                await asyncio.sleep(0.1)
            return False

        await until(whole_way, "bookings do not go through again", seconds=60)
        whole_again = time.monotonic() - began
        # Failures from now on are seen by the probes, so that no retry runs into the next fault.
        await let_run(RETRY_SECONDS + 0.5)
        fault = self.nemesis.faults[-1]
        failed = [at for operation in self.history for at in operation.failed_at if at >= fault.began]
        unpaid = [operation.ended for operation in self.history if operation.unpaid and operation.ended >= fault.began]
        self.notes.append(
            f"{fault.kind} {fault.target}: {_count(failed, fault.ended, 'attempts failed')}"
            f"{_count(unpaid, fault.ended, 'orders were taken unpaid')}"
            f"from a booking to the desk {whole_again:.1f} s after it"
        )

    @asynccontextmanager
    async def replica(
        self, name: str, *, code: Path | None = None, ahead_seconds: float = 0
    ) -> AsyncIterator["OneMore"]:
        """Another process of a service beside the stack's, as during a rollout: the same database, another port.

        Its connections go through no link, so it works when the stack's own process is cut off. `code` is another
        release's folder; its clock may be ahead.
        """
        [port] = ports.reserve(1)
        direct = dataclasses.replace(self.stack, detours={})
        prefix = PROCESSES[name].upper()
        settings = {**os.environ, **direct.service_environment(name), f"{prefix}_PORT": str(port)}
        if code:
            settings["PYTHONPATH"] = str(code)
        log = self.stack.home / "log" / f"{name}.second.log"
        began = log.stat().st_size if log.exists() else 0
        start = START_AHEAD.format(seconds=ahead_seconds, module=name)
        with log.open("a") as out:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-c", start), env=settings, stdout=out, stderr=out, cwd=code
            )
        try:
            otherwise = f"one more {name} does not start"
            await until(lambda: ports.accepts(port) or process.returncode is not None, otherwise)
            if process.returncode is not None:
                raise NotAsItMust(f"one more {name} has ended: see {log}")
            yield OneMore(port, process.pid, log, began)
        finally:
            if process.returncode is None:
                process.terminate()
            await asyncio.wait_for(process.wait(), timeout=60)

    def route(self, name: str, port: int | None = None) -> None:
        """Makes the gateway send a service's calls to one more process, or (None) to the stack's replicas again."""
        self.nemesis.links.redirect((GATEWAY, PROCESSES[name]), port)


START_AHEAD = """
import datetime, runpy
if {seconds}:
    import time_machine
    ahead = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds={seconds})
    time_machine.travel(ahead, tick=True).start()
runpy.run_module("{module}", run_name="__main__", alter_sys=True)
"""


@dataclasses.dataclass(frozen=True, slots=True)
class OneMore:
    """A process that a scenario has started."""

    port: int
    pid: int
    log: Path
    log_began: int

    def said(self, text: str) -> bool:
        """Whether its log contains a text."""
        return text in self.log.read_bytes()[self.log_began :].decode(errors="replace")


CHARGES = """
SELECT ARRAY[count(*), count(*) FILTER (WHERE refunded_at IS NULL)]
FROM ledger
WHERE order_id = $1
  AND outcome = 'CHARGED'
"""


def paid(operations: list[Operation]) -> list[str]:
    """The orders whose answer was paid."""
    return [operation.order_id for operation in operations if operation.is_paid]


def _count(moments: list[float], since: float, what: str) -> str:
    if not moments:
        return f"no {what}, "
    return f"{len(moments)} {what}, the last {max(0.0, max(moments) - since):.1f} s after it, "


async def let_run(seconds: float) -> None:
    """Lets the load run during the fault. (This is the fault's duration, not a wait for a condition.)"""
    await asyncio.sleep(seconds)


def now() -> float:
    """Seconds on the clock of histories and faults."""
    return time.monotonic()
