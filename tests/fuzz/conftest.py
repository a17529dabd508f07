"""The state that the fuzz tests expect: which orders exist, who owns them, and which calls were accepted."""

import json
import os
import random
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import pytest

from tests.conftest import Client, Hotel
from tests.honest import honest
from tests.system.test_journey import query

R = TypeVar("R")

CASES = int(os.environ.get("FUZZ_CASES", "400"))

# Texts that must do no harm in any text field, whether they are refused or accepted.
HOSTILE_TEXTS = [
    "",
    "\x00",
    "a\x00b",
    "\u202egnp.exe",  # right to left
    "\u0627\u0644\u0633\u0644\u0627\u0645",
    "\U0001f3e8" * 30,
    "x" * 65_536,
    "4242424242424242",
    "4242 4242 4242 4242",
    "4242-4242-4242-4242 12/30",
    "' OR 1=1 --",
    "${jndi:ldap://x}",
    "../../etc/passwd",
    "%00%ff%0a",
    "\r\nx-gotohotel-role: desk",
    "{{7*7}}",
    "NaN",
    "-1",
    "9223372036854775808",
    "1e400",
    "\ufeff",
    "e\u0301" * 50,
]
CARDS = [text for text in HOSTILE_TEXTS if text.startswith("4242")]


class Truth:
    """The orders of the fuzz tests' guests, and what the accepted calls changed. Nothing else may have changed."""

    def __init__(self, hotel: Hotel) -> None:
        self.hotel = hotel
        self.guest: Client = hotel.caller(subject=f"fuzz-{uuid.uuid4()}")
        self._guests = [self.guest]
        self.stranger: Client = hotel.caller()
        self.orders: defaultdict[str, set[str]] = defaultdict(set)  # owner → order ids
        self.accepted: defaultdict[str, set[str]] = defaultdict(set)  # RPC, or "paid" → order ids
        self._room_type, self._stay = hotel.room_type(capacity=10_000), hotel.stay()
        self.booked: dict[str, str] = {}  # order id → a hash of what was booked, which never changes
        self.rooms: dict[str, dict[str, Any]] = {room["id"]: room for room in hotel.desk.get("/roomTypes")["roomTypes"]}
        self.answers: Counter[tuple[str, object]] = Counter()  # (RPC, status) → count

    def place_some(self) -> list[str]:
        """Places orders that the cases can use, unpaid ones and paid ones, for a guest without other orders."""
        self.guest = self.hotel.caller(subject=f"fuzz-{uuid.uuid4()}")
        self._guests.append(self.guest)
        placed = [
            self.hotel.order(self.guest, card=card, roomType=self._room_type, **self._stay)["id"]
            for card in (None, None, GOOD, GOOD, GOOD)
        ]
        for order_id in placed[2:]:
            self.hotel.reservation_with(order_id, status="RECEIVED")
        self.orders[self.guest.subject] |= set(placed)
        self.accepted["paid"] |= set(placed[2:])
        return placed

    def note(self, act: str, caller: Client, answer: dict[str, Any]) -> None:
        """Records an accepted call of the RPC `act`."""
        if act == "CreateOrder":
            self.orders[caller.subject].add(answer["id"])
        if act in ("CreateOrder", "PayOrder"):
            if answer["status"] in ("PAID", "CONFIRMED"):
                self.accepted["paid"].add(answer["id"])
        elif act == "UpsertRoomType":
            self.rooms[answer["id"]] = answer
        elif act == "CancelOrder":
            self.accepted[act].add(answer["id"])
        elif act.endswith("Reservation"):
            self.accepted[act].add(answer["orderId"])

    def check(self) -> None:
        """Checks that every stored change comes from an accepted call."""
        guests = [guest.subject for guest in (*self._guests, self.stranger)]
        found: defaultdict[str, set[str]] = defaultdict(set)
        for order in json.loads(query(self.hotel, "order_svc", STORED, guests) or "[]"):
            found[order["owner"]].add(order["id"])
            for fact in order["facts"]:
                assert order["id"] in set().union(*(self.accepted[act] for act in FACTS[fact])), fact
            assert self.booked.setdefault(order["id"], order["booked"]) == order["booked"], order["id"]
        assert found == {guest: self.orders[guest] for guest in guests if self.orders[guest]}
        charged = query(self.hotel, "sandbox", CHARGED, sorted(set().union(*found.values()))) or []
        assert set(charged) <= self.accepted["paid"]
        assert {room["id"]: room for room in self.hotel.desk.get("/roomTypes")["roomTypes"]} == self.rooms


CHARGED = "SELECT array_agg(order_id) FROM ledger WHERE outcome = 'CHARGED' AND order_id = ANY($1)"
GOOD = "4242424242424242"
ENDED = ("CancelOrder", "CancelReservation", "RejectReservation")
FACTS = {
    "paid_at": ("paid",),
    "cancel_asked_at": ("CancelOrder",),
    "payment_canceled_at": ENDED,
    "confirmed_at": ("ConfirmReservation",),
    "rejected_at": ("RejectReservation",),
    "reservation_canceled_at": ENDED,
    "expired_at": (),
}
STORED = f"""
SELECT json_agg(json_build_object(
    'owner', owner,
    'id', id,
    'booked', md5(ROW(name, phone_no, room_type, guest_cnt, check_in, check_out, amount, currency, expires_at)::text),
    'facts', array_remove(ARRAY[{", ".join(f"CASE WHEN {fact} IS NOT NULL THEN '{fact}' END" for fact in FACTS)}], NULL)
))
FROM orders
WHERE owner = ANY($1)
"""


def patiently(call: Callable[[], R], is_limited: Callable[[R], bool]) -> R:
    """Repeats a call that was turned away by the caller's rate limit: the cases come faster than a guest may call."""
    while is_limited(result := call()):
        time.sleep(0.2)
    return result


@pytest.fixture(scope="package")  # tests of other packages create room types
def truth(hotel: Hotel, request: pytest.FixtureRequest) -> Iterator[Truth]:
    """Shared by all cases and checked once more at the end. Prints how often each call got each answer.

    Beside all of them an honest guest sees no error.
    """
    with honest(hotel):
        known = Truth(hotel)
        yield known
    known.check()
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print(f"\n{sum(known.answers.values())} cases; answers by call:")
        for rpc in sorted({rpc for rpc, _ in known.answers}):
            counts = [f"{count} × {code}" for (name, code), count in known.answers.most_common() if name == rpc]
            print(f"  {rpc:<20} {', '.join(counts)}")


def spoil(value: Any, chance: random.Random) -> Any:
    """Returns the value with one part of it replaced by a hostile text."""
    if isinstance(value, dict) and value:
        key = chance.choice(sorted(value))
        return {**value, key: spoil(value[key], chance)}
    if isinstance(value, list) and value:
        return [*value[:-1], spoil(value[-1], chance)]
    return chance.choice(HOSTILE_TEXTS)
