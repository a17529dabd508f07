"""Guests and a desk that make calls continuously, and remember the answers."""

import asyncio
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date, timedelta
from typing import Any

import httpx

from ops.stack import Stack

GOOD = "4242 4242 4242 4242"
PHONE, PHONE_OF_A_LOST_ANSWER, PHONE_OF_A_LATE_ANSWER = "010-1234-0000", "010-1234-0001", "010-1234-1005"
PHONE_OF_A_DOUBLED_ANSWER = "010-1234-0200"
LOST_ANSWER, ERROR, DECLINED = "4000000000000259", "4000000000000119", "4000000000000002"
DECLINES = ("CARD_DECLINED", "INSUFFICIENT_FUNDS", "EXPIRED_CARD")
ROOMS, FEW_ROOMS = "ChaosRooms", "ChaosFew"
NIGHTS = 300
GUESTS = 6
PAUSE_SECONDS = 0.25  # pause between two calls of a guest: constant load, not full load
RETRY_SECONDS = 5.0  # a client repeats a failed call once, after this time
PROBE_SECONDS = 0.1  # interval of the probes, which do not wait for earlier answers
HANGS_SECONDS = 15.0  # longer than the gateway lets any call take

OK, REFUSED, UNKNOWN = "ok", "refused", "unknown"


@dataclass(kw_only=True)
class Operation:
    """One call and its answer: ok, refused (definitely not done), or unknown."""

    kind: str
    request: dict[str, Any]
    label: str = ""  # of an order: stored as its guest's name, so that it can be found in the databases
    order_id: str = ""
    began: float = 0.0
    ended: float = 0.0
    status: int = 0
    outcome: str = UNKNOWN
    first_outcome: str = ""
    answer: dict[str, Any] = field(default_factory=dict)
    failed_at: list[float] = field(default_factory=list)  # when attempts ended as unknown
    errors: list[str] = field(default_factory=list)  # and with which errors
    unpaid: bool = False  # a probe's order was placed, but pay_svc could not be reached
    slowest: float = 0.0  # of its attempts, in seconds

    @property
    def reason(self) -> str:
        """Why it was refused."""
        return str(next((d["reason"] for d in self.answer.get("details", []) if "reason" in d), ""))

    @property
    def is_paid(self) -> bool:
        """Whether the answer is an order that is paid."""
        return self.outcome == OK and self.answer.get("status") in ("PAID", "CONFIRMED")

    @property
    def is_refused(self) -> bool:
        """Whether every attempt was definitely refused."""
        return self.outcome == REFUSED and not self.failed_at

    @property
    def may_be_charged(self) -> bool:
        """Whether the card may have been charged according to the answer: a card was given, and not declined."""
        error = self.answer.get("paymentError") or {}
        return bool(self.request.get("cardNo")) and error.get("reason") not in DECLINES


def overlap(*operations: Operation) -> bool:
    """Whether all of these calls were running at one moment."""
    return max(each.began for each in operations) < min(each.ended for each in operations)


class Caller:
    """One client of the gateway. A call of unknown outcome is tried once more, with the same request id."""

    def __init__(self, stack: Stack, *, subject: str, role: str = "guest", history: list[Operation]) -> None:
        self.subject = subject
        self.token = stack.token(subject=subject, role=role)
        self._history = history
        self._numbers = iter(range(1_000_000))
        self._http = httpx.AsyncClient(
            base_url=stack.gateway_url,
            headers={"Authorization": f"Bearer {self.token}"},
            timeout=HANGS_SECONDS,
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=50),
            verify=False,  # noqa: S501 - plain HTTP on loopback; reading certificates takes long for 500 callers
        )

    async def close(self) -> None:
        """Closes the connections."""
        await self._http.aclose()

    async def _within_the_rate(self, method: str, path: str, body: dict[str, Any] | None) -> httpx.Response:
        """One request; after "too many requests" it waits as long as the gateway says, and asks again."""
        while True:
            answer = await self._http.request(method, path, json=body)
            if answer.status_code != httpx.codes.TOO_MANY_REQUESTS or "RATE_LIMITED" not in answer.text:
                return answer
            await asyncio.sleep(float(answer.headers["retry-after"]))

    async def call(
        self,
        kind: str,
        method: str,
        path: str,
        body: dict[str, Any] | None = None,
        *,
        attempts: int = 2,
        label: str = "",
    ) -> Operation:
        """Makes a call and remembers it."""
        operation = Operation(kind=kind, request=body or {}, label=label, began=time.monotonic())
        self._history.append(operation)
        for left in reversed(range(attempts)):
            began = time.monotonic()
            try:
                answer = await self._within_the_rate(method, path, body)
                operation.status, operation.answer = answer.status_code, answer.json()
                refused = REFUSED if answer.status_code < 500 and answer.status_code != 429 else UNKNOWN
                operation.outcome = OK if answer.is_success else refused
            except (httpx.HTTPError, ValueError) as error:
                operation.status, operation.answer = 0, {"error": repr(error)}
                operation.outcome = UNKNOWN
            operation.ended = time.monotonic()
            operation.slowest = max(operation.slowest, operation.ended - began)
            operation.first_outcome = operation.first_outcome or operation.outcome
            if operation.outcome != UNKNOWN:
                break
            operation.failed_at.append(operation.ended)
            operation.errors.append(str(operation.answer.get("message") or operation.answer.get("error")))
            if left:
                await asyncio.sleep(RETRY_SECONDS)
        if (method, path) == ("POST", "/orders"):
            operation.order_id = operation.answer.get("id", "")
        return operation

    async def book(self, card: str | None = GOOD, *, attempts: int = 2, **booking: Any) -> Operation:
        """Places an order under a request id of its own."""
        label = f"{self.subject} {next(self._numbers)}"
        body = {"name": label, "phoneNo": PHONE, "roomType": ROOMS, "guestCnt": 1, "requestId": label, **booking}
        if card:
            body["cardNo"] = card
        return await self.call("book", "POST", "/orders", body, attempts=attempts, label=label)

    async def pay(self, order_id: str, card: str = GOOD, *, attempts: int = 2) -> Operation:
        """Pays an order."""
        body = {"orderId": order_id, "cardNo": card, "requestId": f"{self.subject} {next(self._numbers)}"}
        return self._about(order_id, await self.call("pay", "POST", "/payments", body, attempts=attempts))

    async def cancel(self, order_id: str, *, attempts: int = 2) -> Operation:
        """Cancels an order."""
        body = {"requestId": f"{self.subject} {next(self._numbers)}"}
        return self._about(
            order_id, await self.call("cancel", "POST", f"/orders/{order_id}:cancel", body, attempts=attempts)
        )

    async def decide(self, order_id: str, act: str, *, attempts: int = 2) -> Operation:
        """The desk confirms, rejects or cancels a reservation."""
        path = f"/reservations/{order_id}:{act}"
        body = {"requestId": f"{act} {order_id} {next(self._numbers)}"}
        return self._about(order_id, await self.call(f"desk {act}", "POST", path, body, attempts=attempts))

    async def look(self, path: str, *, attempts: int = 2) -> Operation:
        """Reads a resource."""
        return await self.call("look", "GET", path, attempts=attempts)

    async def probe(self, method: str, path: str, body: dict[str, Any] | None = None) -> Operation:
        """Makes one attempt, only to see whether it works."""
        return await self.call("probe", method, path, body, attempts=1)

    @staticmethod
    def _about(order_id: str, operation: Operation) -> Operation:
        operation.order_id = order_id
        return operation


def a_stay(chance: random.Random, *, few: bool = False) -> dict[str, Any]:
    """Some nights; `few` means the next three days, which many guests want."""
    first = date.today() + timedelta(days=1 + chance.randrange(3 if few else NIGHTS))  # noqa: DTZ011 - any will do
    return {"checkIn": first.isoformat(), "checkOut": (first + timedelta(days=chance.randint(1, 3))).isoformat()}


class Load:
    """Guests who book, pay, cancel and read, and a desk that decides."""

    def __init__(self, stack: Stack, *, name: str, seed: int) -> None:
        self.history: list[Operation] = []
        self._name = f"{name}-guest"
        self._seed = seed
        self._guests = [
            Caller(stack, subject=f"{name}-guest-{number}", history=self.history) for number in range(GUESTS)
        ]
        self._desk = Caller(stack, subject=f"{name}-desk", role="desk", history=self.history)
        self._prober = Caller(stack, subject=f"{name}-probe", role="desk", history=self.history)
        self._booker = self._guests[0]
        self._stopping = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Starts the clients."""
        for number, guest in enumerate(self._guests):
            chance = random.Random(f"{self._seed}/{guest.subject}/{number}")
            self._tasks.append(asyncio.create_task(self._be_a_guest(guest, chance)))
        self._tasks.append(asyncio.create_task(self._be_the_desk(random.Random(f"{self._seed}/desk"))))
        self._tasks.append(asyncio.create_task(self._probe(random.Random(f"{self._seed}/probe"))))

    async def stop(self) -> None:
        """Starts no new calls, and waits until every call has been answered."""
        self._stopping.set()
        await asyncio.gather(*self._tasks)
        for caller in (*self._guests, self._desk, self._prober):
            await caller.close()

    def errors(self) -> Iterator[Operation]:
        """Calls whose first attempt had no definite outcome."""
        return (operation for operation in self.history if operation.first_outcome == UNKNOWN)

    async def _be_a_guest(self, guest: Caller, chance: random.Random) -> None:
        orders: list[str] = []
        while not self._stopping.is_set():
            await asyncio.sleep(PAUSE_SECONDS * chance.uniform(0.5, 1.5))
            draw = chance.random()
            if draw < 0.6 or not orders:
                card = chance.choices([GOOD, LOST_ANSWER, DECLINED, ERROR, None], [70, 10, 5, 5, 10])[0]
                few = chance.random() < 0.1
                booked = await guest.book(card, roomType=FEW_ROOMS if few else ROOMS, **a_stay(chance, few=few))
                if booked.outcome == OK:
                    orders.append(booked.order_id)
            elif draw < 0.72:
                await guest.pay(chance.choice(orders[-5:]))
            elif draw < 0.85:
                await guest.cancel(chance.choice(orders[-10:]))
            else:
                await guest.look(f"/{chance.choice(['orders', 'mypages', 'payments'])}/{chance.choice(orders)}")

    async def _be_the_desk(self, chance: random.Random) -> None:
        while not self._stopping.is_set():
            await asyncio.sleep(PAUSE_SECONDS * chance.uniform(0.5, 1.5))
            received = await self._desk.look("/reservations?status=RECEIVED&pageSize=20")
            # Only the load's own: a scenario decides on its reservations itself.
            reservations = [r for r in received.answer.get("reservations") or [] if r["name"].startswith(self._name)]
            if reservations:
                act = chance.choices(["confirm", "reject", "cancel"], [70, 15, 15])[0]
                await self._desk.decide(chance.choice(reservations)["orderId"], act)

    async def _probe(self, chance: random.Random) -> None:
        """Probes at a constant rate, whatever the last answer was: this measures how long a failure lasts."""
        async with asyncio.TaskGroup() as probes:
            while not self._stopping.is_set():
                for ask in (self._probe_booking(chance), *(self._prober.probe("GET", path) for path in PROBED)):
                    probes.create_task(ask)
                    await asyncio.sleep(PROBE_SECONDS)

    async def _probe_booking(self, chance: random.Random) -> None:
        body = {"name": "probe", "roomType": ROOMS, "guestCnt": 1, "cardNo": GOOD, **a_stay(chance)}
        probe = await self._booker.probe("POST", "/orders", body)
        probe.unpaid = probe.outcome == OK and not probe.is_paid


PROBED = ("/rooms", "/mypages?pageSize=1", "/reservations?pageSize=1")
