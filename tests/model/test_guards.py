"""With any one guard removed, a test fails: what keeps money and rooms right is known, and tested.

Each guard is taken out of the running program, and the test that must notice is run. docs/guards.md lists them.
"""

import inspect
import textwrap
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from gotohotel import inbox, outbox
from gotohotel.database import Database
from order_svc import store as order_store
from pay_svc import domain as pay
from pay_svc import processor
from pay_svc import service as pay_service
from pay_svc import store as pay_store
from reservation_svc import domain as desk
from reservation_svc import service as desk_service
from reservation_svc import store as desk_store
from tests.conftest import ROOT
from tests.gotohotel import test_bus, test_idempotency
from tests.gotohotel.test_bus import Server
from tests.model import fakes, test_fakes
from tests.model.test_model import TheHotel
from tests.order_svc import test_store
from tests.pay_svc import test_service as test_payments
from tests.reservation_svc import test_store as test_desk

# Any of a machine's many runs will do, the same ones each time; nothing is made smaller afterwards.
SEARCH = settings(
    max_examples=2000,
    stateful_step_count=25,
    deadline=None,
    derandomize=True,
    report_multiple_bugs=False,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Guard:
    """A line of the program, what it is changed into, and the test that must then fail ("" : the model)."""

    name: str
    owner: Any
    attribute: str
    line: str
    without: str
    test: Callable[..., Awaitable[None]] | None = None


GUARDS = [
    Guard(
        name="a reservation that ends before it is taken is never taken",
        owner=desk.Reservation,
        attribute="take",
        line="if self.booking is not None or self.ending is not None:",
        without="if self.booking is not None:",
    ),
    Guard(
        name="a payment that is canceled before it is tried is never tried",
        owner=pay.Payment,
        attribute="may_be_tried",
        line="self.status == Status.DECLINED and not ends and",
        without="self.approved_at is None and",
    ),
    Guard(
        name="one try to pay at a time",
        owner=pay.Payment,
        attribute="may_be_tried",
        line="self.status == Status.DECLINED and",
        without="self.approved_at is None and self.canceled_at is None and",
    ),
    Guard(
        name="a key that was settled as uncharged is closed for good (the processor's promise)",
        owner=fakes.FakeProcessor,
        attribute="_enter",
        line="return self.ledger.setdefault(key, entry)",
        without="return self.ledger.setdefault(key, entry) if charged else self.ledger.get(key, entry)",
    ),
    Guard(
        name="a key is charged once (the processor's promise)",
        owner=fakes.FakeProcessor,
        attribute="charge",
        line="self._enter(key, order_id",
        without="self._enter(key + str(len(self.ledger)), order_id",
    ),
    Guard(
        name="a save compares revisions (in memory)",
        owner=fakes.Table,
        attribute="put",
        line="if (stored.revision if stored else 0) != aggregate.revision:",
        without="if False:",
    ),
    Guard(
        name="a desk's cancel that pay_svc may have heard of is not withdrawn",
        owner=desk_service,
        attribute="end_reservation",
        line="if asked_first and error.never_asked:",
        without="if asked_first:",
    ),
    Guard(
        name="a refund comes before the payment is called canceled",
        owner=pay_service,
        attribute="_finish_cancel",
        line="await processor.refund(payment.attempt_id)",
        without="pass",
    ),
    Guard(
        name="held <= capacity (in memory)",
        owner=fakes.FakeOrders,
        attribute="place",
        line="if any(self.held[night] >= self.capacity for night in nights):",
        without="if False:",
    ),
    Guard(
        name="a request id makes one order (in memory)",
        owner=fakes.FakeOrders,
        attribute="place",
        line="if claim is not None and claim.key in self.claims:",
        without="if False:",
    ),
    Guard(
        name="the inbox claim",
        owner=inbox,
        attribute="CLAIM",
        line="ON CONFLICT DO NOTHING\nRETURNING event_id",
        without="ON CONFLICT (event_id) DO UPDATE SET received_at = now()\nRETURNING event_id",
        test=test_bus.test_an_event_that_comes_again_has_no_second_effect,
    ),
    Guard(
        name="the version guard of an order",
        owner=order_store,
        attribute="SAVE",
        line="AND orders.revision = change.revision",
        without="",
        test=test_store.test_of_two_changes_at_once_one_is_refused,
    ),
    Guard(
        name="the version guard of a payment",
        owner=pay_store,
        attribute="SAVE",
        line="AND revision = $2",
        without="AND $2::bigint IS NOT NULL",
        test=test_fakes.test_payments_are_one_an_order_and_saved_by_who_is_first,
    ),
    Guard(
        name="the sandbox closes a key that it has not charged",
        owner=processor.SandboxProcessor,
        attribute="settle",
        line='await self._enter(key, "", Money.zero("XXX"), reason=UNAVAILABLE)',
        without="Refusal(reason=UNAVAILABLE)",
        test=test_payments.test_a_try_that_was_settled_as_uncharged_is_never_charged_later,
    ),
    Guard(
        name="a try that may still be at the processor is left alone",
        owner=pay_store,
        attribute="UNSETTLED",
        line="AND updated_at < now() - $1::interval",
        without="AND $1::interval IS NOT NULL",
        test=test_payments.test_a_try_that_may_still_be_at_the_processor_is_left_alone,
    ),
    Guard(
        name="an ending that is carried through binds",
        owner=desk_store,
        attribute="DUE_ENDINGS",
        line="ending_binding = true,",
        without="",
        test=test_desk.test_an_ending_that_is_carried_through_can_no_longer_be_withdrawn,
    ),
    Guard(
        name="a call that loaded an ending before it was carried through can't save",
        owner=desk_store,
        attribute="DUE_ENDINGS",
        line="revision = revision + 1",
        without="revision = revision",
        test=test_desk.test_an_ending_that_is_carried_through_can_no_longer_be_withdrawn,
    ),
    Guard(
        name="the version guard of a room type",
        owner=desk_store,
        attribute="SAVE_ROOM_TYPE",
        line="WHERE room_types.version = excluded.version - 1",
        without="",
        test=test_desk.test_of_two_changes_of_a_room_type_one_is_refused,
    ),
    Guard(
        name="an aggregate's later event waits for its earlier one",
        owner=outbox,
        attribute="NEXT_WAVE",
        line="DISTINCT ON (aggregate_id)",
        without="",
        test=test_bus.test_a_later_event_waits_for_an_earlier_one,
    ),
]

CONSTRAINTS = {
    "allotment_held_within_capacity": ("allotment", test_store.test_the_last_room_is_sold_once),
    "orders_hold_every_night": ("orders", test_store.test_a_night_that_is_not_on_sale_cannot_be_booked),
    "requests_once": ("requests", test_idempotency.test_the_same_request_many_times_at_once_acts_once),
    "entries_one_outcome": ("entries", test_payments.test_a_try_that_was_settled_as_uncharged_is_never_charged_later),
    "outbox_aggregate_id_aggregate_version_key": ("outbox", test_bus.test_a_version_is_announced_once),
    "payments_pkey": ("payments", test_payments.test_an_approved_payment_is_never_charged_again),
}


def changed(owner: Any, guard: Guard) -> Any:
    """The function or statement without the guard."""
    current = getattr(owner, guard.attribute)
    source = current if isinstance(current, str) else textwrap.dedent(inspect.getsource(current))
    assert source.count(guard.line) == 1, f"{guard.name}: the line stands {source.count(guard.line)} times there"
    mutated = source.replace(guard.line, guard.without)
    if isinstance(current, str):
        return mutated
    made: dict[str, Any] = {}
    exec(compile(mutated, inspect.getfile(current), "exec"), current.__globals__, made)  # noqa: S102 - that is the point
    return made[guard.attribute]


def test_the_model_holds_with_every_guard_in_place() -> None:
    """The control: the very runs in which a removed guard is found."""
    run_state_machine_as_test(TheHotel, settings=settings(SEARCH, max_examples=300))


@pytest.mark.parametrize("guard", [guard for guard in GUARDS if guard.test is None], ids=lambda guard: guard.name)
def test_the_model_misses_a_rule(monkeypatch: pytest.MonkeyPatch, guard: Guard) -> None:
    """Some run ends with books that do not agree."""
    monkeypatch.setattr(guard.owner, guard.attribute, changed(guard.owner, guard))

    with pytest.raises(AssertionError):
        run_state_machine_as_test(TheHotel, settings=SEARCH)


server = test_bus.server  # the fixture


@pytest.fixture
def at_hand(
    server: Server,
    order_database: Database,
    pay_database: Database,
    reservation_database: Database,
    scratch_url: str,
) -> dict[str, Any]:
    """What the tests of real parts ask for; the first two schemas are in one scratch database."""
    return {
        "reservation_database": reservation_database,
        "server": server,
        "order_database": order_database,
        "pay_database": pay_database,
        "scratch_url": scratch_url,
        "payments": pay_store.PostgresPayments(pay_database.autocommit),
    }


@pytest.mark.parametrize("guard", [guard for guard in GUARDS if guard.test is not None], ids=lambda guard: guard.name)
async def test_a_real_store_misses_a_rule(
    monkeypatch: pytest.MonkeyPatch, guard: Guard, at_hand: dict[str, Any]
) -> None:
    """The test of that rule fails."""
    assert guard.test is not None
    monkeypatch.setattr(guard.owner, guard.attribute, changed(guard.owner, guard))

    assert await fails(guard.test, at_hand)


@pytest.mark.parametrize("constraint", CONSTRAINTS)
async def test_a_database_misses_a_constraint(constraint: str, at_hand: dict[str, Any]) -> None:
    """The test of that rule fails."""
    table, test = CONSTRAINTS[constraint]
    database: Database = at_hand["order_database"]
    if constraint.startswith("entries"):  # they hold for some of the rows only
        await database.autocommit.execute(f"DROP INDEX {constraint}")
    else:
        await database.autocommit.execute(f"ALTER TABLE {table} DROP CONSTRAINT {constraint}")

    assert await fails(test, at_hand)


async def fails(test: Callable[..., Awaitable[None]], at_hand: dict[str, Any]) -> bool:
    """Whether a test does not pass."""
    try:
        await test(**{name: at_hand[name] for name in inspect.signature(test).parameters})
    except (Exception, pytest.fail.Exception):  # noqa: BLE001 - however it fails
        return True
    return False


def test_the_documents_list_is_this_one() -> None:
    """Every guard, and the test that notices."""
    listed = (ROOT / "docs" / "guards.md").read_text()

    for guard in GUARDS:
        assert f"| {guard.name} | {place(guard.test)} |" in listed
    for constraint, (table, test) in CONSTRAINTS.items():
        assert f"| constraint `{constraint}` of `{table}` | {place(test)} |" in listed


def place(test: Callable[..., Awaitable[None]] | None) -> str:
    """Where a test stands."""
    if test is None:
        return "tests/model/test_model.py"
    return f"{Path(inspect.getfile(test)).relative_to(ROOT)}: {test.__name__}"
