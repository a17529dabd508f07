"""If any one guard is removed, a test fails: every rule that protects money and rooms is tested.

Long because it lists every guard.

Each guard is removed from the running program, and the test that must then fail is run. docs/guards.md lists them.
"""

import inspect
import textwrap
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.internal.cache import LRUCache
from hypothesis.internal.conjecture import providers
from hypothesis.internal.constants_ast import Constants
from hypothesis.stateful import run_state_machine_as_test

from gotohotel import claims, clock, idempotency, inbox, log, outbox
from gotohotel.bus import connection, consumer
from gotohotel.columns import Statement
from gotohotel.database import Database
from mypage_svc import jobs as mypage_jobs
from mypage_svc.domain import Pages
from mypage_svc.store import PageBucket
from ops.stack import Stack
from order_svc import clients as order_clients
from order_svc import domain as orders
from order_svc import server as order_server
from order_svc.store import expiry as order_expiry
from order_svc.store import orders as order_store
from pay_svc import domain as pay
from pay_svc import sandbox
from pay_svc import service as pay_service
from pay_svc import store as pay_store
from reservation_svc import domain as desk
from reservation_svc import service as desk_service
from reservation_svc.store import reservations as desk_store
from reservation_svc.store import room_types as desk_room_types
from tests.conftest import ROOT
from tests.databases import Databases
from tests.gotohotel import test_bus, test_clock, test_database, test_idempotency, test_log
from tests.model import test_fakes
from tests.model.test_model import TheHotel
from tests.mypage_svc import test_messages
from tests.mypage_svc import test_store as test_page_store
from tests.mypage_svc.conftest import pages_in_nats
from tests.order_svc import test_clients, test_guests, test_store
from tests.order_svc import test_domain as test_orders
from tests.order_svc import test_server as test_order_server
from tests.pay_svc import test_attempts
from tests.pay_svc import test_service as test_payments
from tests.reservation_svc import test_domain as test_desk_rules
from tests.reservation_svc import test_store as test_desk

# Any failing run will do: the runs are the same each time, and a failure is not shrunk.
SEARCH = settings(
    max_examples=2000,
    stateful_step_count=40,
    deadline=None,
    report_multiple_bugs=False,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@seed(180)  # whose runs need only seconds to find what each guard prevents
class SeededHotel(TheHotel):
    """The model, with the same runs each time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Guard:
    """A line of the program, its replacement, and the test that must then fail (None: the model)."""

    name: str
    owner: Any
    attribute: str
    line: str
    without: str
    test: Callable[..., Awaitable[None] | None] | None = None
    # The error that ends the test. It is not AssertionError where a second guard refuses what the removed one would
    # have refused.
    ends_with: type[BaseException] = AssertionError


GUARDS = [
    Guard(
        name="a reservation that ends before it is taken is never taken",
        owner=desk.Reservation,
        attribute="take",
        line="if self.booking is not None or self.ending is not None:",
        without="if self.booking is not None:",
        test=test_desk_rules.test_a_cancel_that_comes_first_wins,
    ),
    Guard(
        name="a payment that is canceled before it is tried is never tried",
        owner=pay.Payment,
        attribute="may_be_tried",
        line="self.status == Status.DECLINED and not ends and",
        without="self.approved_at is None and",
    ),
    Guard(
        name="one attempt to pay at a time",
        owner=pay.Payment,
        attribute="may_be_tried",
        line="self.status == Status.DECLINED and",
        without="self.approved_at is None and self.canceled_at is None and",
        test=test_payments.test_a_payment_is_not_canceled_while_an_attempt_is_open,
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
        name="a guest has three unpaid orders at most",
        owner=order_store,
        attribute="PLACE",
        line="count(*) FILTER (WHERE counts) < :max_unpaid_orders::integer",
        without=":max_unpaid_orders::integer IS NOT NULL",
        test=test_guests.test_a_guest_may_have_three_unpaid_orders,
    ),
    Guard(
        name="ten cards of a guest may be declined in an hour",
        owner=pay_store,
        attribute="ADD",
        line=") AS attempts) < :max_declines::integer",
        without=") AS attempts) < 1000",
        test=test_attempts.test_of_many_cards_at_once_ten_are_tried,
    ),
    Guard(
        name="an attempt that is not admitted is not stored",
        owner=pay_store,
        attribute="SAVE_ATTEMPT",
        line="      AND EXISTS (SELECT FROM admitted)\n",
        without="",
        test=test_attempts.test_of_many_further_cards_at_once_ten_are_tried,
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
        test=test_store.test_an_end_that_comes_second_is_refused,
    ),
    Guard(
        name="the version guard of an order that keeps its nights",
        owner=order_store,
        attribute="SAVE_QUIETLY",
        line="AND revision = :revision::bigint",
        without="AND :revision::bigint IS NOT NULL",
        test=test_store.test_of_two_changes_at_once_one_is_refused,
    ),
    Guard(
        name="an order that ends gives its nights back, also if it announces nothing",
        owner=order_store.PostgresOrders,
        attribute="save",
        line="and orders[0].holds_nights and",
        without="and",
        test=test_store.test_an_end_that_is_no_event_of_the_order_gives_its_nights_back,
    ),
    Guard(
        name="the version guard of a payment",
        owner=pay_store,
        attribute="SAVE",
        line="AND revision = :revision::bigint",
        without="AND :revision::bigint IS NOT NULL",
        test=test_fakes.test_payments_are_one_an_order_and_saved_by_who_is_first,
    ),
    Guard(
        name="the version guard of an attempt to pay",
        owner=pay_store,
        attribute="SAVE_ATTEMPT",
        line="AND revision = :revision::bigint",
        without="AND :revision::bigint IS NOT NULL",
        test=test_payments.test_of_two_attempts_at_once_one_is_refused,
    ),
    Guard(
        name="the sandbox closes a key that it has not charged",
        owner=sandbox.SandboxProcessor,
        attribute="cancel",
        line='await self._enter(key, "", Money.zero("XXX"), reason=DeclineReason.PAYMENT_UNAVAILABLE)',
        without="Refusal(reason=DeclineReason.PAYMENT_UNAVAILABLE)",
        test=test_payments.test_an_attempt_that_was_settled_as_uncharged_is_never_charged_later,
    ),
    Guard(
        name="a card is sent to a processor only when it is stored that the processor knows the attempt",
        owner=pay_service,
        attribute="process_payment",
        line="payment.note_created(attempt_id)\n                await payments.save(payment)",
        without="payment.note_created(attempt_id)",
    ),
    Guard(
        name="an attempt that may still be at the processor is left alone",
        owner=pay_store,
        attribute="UNSETTLED",
        line="AND updated_at < now() - $1::interval",
        without="AND $1::interval IS NOT NULL",
        test=test_payments.test_an_attempt_that_may_still_be_at_the_processor_is_left_alone,
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
        owner=desk_room_types,
        attribute="SAVE_ROOM_TYPE",
        line="WHERE room_types.version = excluded.version - 1",
        without="",
        test=test_desk.test_of_two_changes_of_a_room_type_one_is_refused,
        ends_with=asyncpg.UniqueViolationError,  # the outbox accepts each version once
    ),
    Guard(
        name="an aggregate's later event waits for its earlier one",
        owner=outbox,
        attribute="NEXT_BATCH",
        line="DISTINCT ON (aggregate_id)",
        without="",
        test=test_bus.test_a_later_event_waits_for_an_earlier_one,
    ),
    Guard(
        name="an order expires only when its payment is closed uncharged, however late the news is",
        owner=orders.Order,
        attribute="expire",
        line=" or not payment.closed:",
        without=":",
    ),
    Guard(
        name="a payment that is closed is never tried",
        owner=pay.Payment,
        attribute="may_be_tried",
        line="self.cancel_asked_at or self.close_asked_at",
        without="self.cancel_asked_at",
        test=test_payments.test_a_declined_attempt_after_which_the_payment_is_closed_is_not_tried_again,
    ),
    Guard(
        name="the time to pay stops while pay_svc can't be reached",
        owner=order_expiry,
        attribute="DUE",
        line="AND NOT EXISTS (SELECT FROM payment_outage)",
        without="",
        test=test_store.test_the_time_to_pay_stops_while_pay_svc_cannot_be_reached,
    ),
    Guard(
        name="a hold has an absolute end",
        owner=orders.Order,
        attribute="start_payment",
        line="min(started_at, self.expires_at) + lifetime",
        without="started_at + lifetime",
        test=test_orders.test_a_hold_has_an_absolute_end,
    ),
    Guard(
        name="the attempt that pay_svc works on is settled, whoever asked",
        owner=orders.Order,
        attribute="settle_payment",
        line="self.attempt_id = outcome.attempt_id",
        without="pass",
        test=test_orders.test_overlapping_attempts_with_a_declined_card_leave_nothing_in_flight,
    ),
    Guard(
        name="a decline is heard of by event too",
        owner=orders.Order,
        attribute="note_payment_declined",
        line="self.payment_error = declined(reason)",
        without="pass",
        test=test_orders.test_a_decline_that_only_the_event_tells_replaces_what_was_said_before,
    ),
    Guard(
        name="only a call that was never sent is called unavailable",
        owner=order_clients.GrpcPayments,
        attribute="process",
        line="if error.never_sent:",
        without="if True:",
        test=test_clients.test_only_a_call_that_was_never_sent_means_pay_later,
    ),
    Guard(
        name="an answer that was not final is not repeated",
        owner=order_server.OrderServer,
        attribute="_latest",
        line="if answer.payment_error.reason != IN_PROGRESS.reason:",
        without="if True:",
        test=test_order_server.test_a_repetition_tells_how_the_order_stands_if_the_first_answer_was_not_final,
    ),
    Guard(
        name="nights are given back once, by what is stored",
        owner=order_store,
        attribute="SAVE",
        line="      AND orders.holds_nights\n",
        without="",
        test=test_store.test_nights_are_given_back_by_the_row_not_by_the_program,
    ),
    Guard(
        name="a relay that is frozen in a statement loses its lock",
        owner=outbox,
        attribute="EVICT",
        line="AND state = 'active'",
        without="AND state = 'never'",
        test=test_bus.test_the_lock_of_a_frozen_relay_passes_on,
    ),
    Guard(
        name="an event that is too large holds up no other order",
        owner=connection.Bus,
        attribute="publish_all",
        line="if self._is_too_large(subject, payload, headers):",
        without="if False:",
        test=test_bus.test_an_event_that_is_too_large_holds_up_no_other_order,
    ),
    Guard(
        name="what only a newer release has stored of a booking is kept",
        owner=pay_store,
        attribute="SAVE_ATTEMPT",
        line="coalesce(payments.booking || :booking::jsonb, :booking::jsonb)",
        without=":booking::jsonb",
        test=test_payments.test_what_a_newer_release_knows_of_a_booking_is_passed_over_and_kept,
    ),
    Guard(
        name="what only a newer release has stored of a reservation is kept",
        owner=desk_store,
        attribute="SAVE",
        line="coalesce(reservations.booking || change.booking, change.booking, reservations.booking)",
        without="change.booking",
        test=test_desk.test_what_a_newer_release_knows_of_a_booking_is_passed_over_and_kept,
    ),
    Guard(
        name="an event that only a newer release knows is handed back",
        owner=consumer.Consumer,
        attribute="_handle",
        line="await self._hand_back(delivery)",
        without='await self._bury(delivery, "unknown")',
        test=test_bus.test_two_releases_share_a_subscription,
    ),
    Guard(
        name="a release that can handle nothing keeps the events",
        owner=consumer.Consumer,
        attribute="_handle_one_by_one",
        line="if self.is_halted:",
        without="if False:",
        test=test_bus.test_a_release_that_cannot_handle_events_keeps_them,
    ),
    Guard(
        name="a migration waits briefly for a lock",
        owner=test_database,
        attribute="migrate",
        line="int(LOCK_TIMEOUT_SECONDS * 1000)",
        without="60_000",
        test=test_database.test_a_migration_behind_a_long_read_holds_nobody_up,
    ),
    Guard(
        name="a message whose answer was lost is looked up before it is sent again",
        owner=mypage_jobs.Jobs,
        attribute="_taken_before",
        line="if message.tries > 1 else None",
        without="if message.tries > 1000 else None",
        test=test_messages.test_a_sender_that_died_before_it_stored_the_answer_sends_nothing_twice,
    ),
    Guard(
        name="a page in NATS is written only if it is still the one that was read",
        owner=PageBucket,
        attribute="_write",
        line="update(_page_key(order_id), json.dumps(value).encode(), last=page.revision)",
        without="put(_page_key(order_id), json.dumps(value).encode())",
        test=test_page_store.test_whoever_merges_at_the_same_time_loses_nothing,
    ),
    Guard(
        name="the database's clock decides",
        owner=clock.Clock,
        attribute="now",
        line="return self._time_read + timedelta(seconds=_seconds() - self._read_at)",
        without="return datetime.now(UTC)",
        test=test_clock.test_the_databases_time_decides,
    ),
    Guard(
        name="the claim of a live call is not orphaned by a duplicate",
        owner=claims.LiveClaims,
        attribute="is_orphaned",
        line=" and claim.key not in self._live",
        without="",
        test=test_idempotency.test_a_duplicate_that_fails_does_not_orphan_the_claim_of_a_live_call,
    ),
    Guard(
        name="a live call renews its claim",
        owner=idempotency,
        attribute="RENEW",
        line="AND requests.response IS NULL",
        without="AND false",
        test=test_idempotency.test_a_repetition_after_a_crash_has_time_to_act,
    ),
    Guard(
        name="nobody's row stands in a log",
        owner=log,
        attribute="without_rows",
        line="each.detail = None",
        without="pass",
        test=test_log.test_a_guests_row_does_not_stand_in_a_traceback,
    ),
]

CONSTRAINTS = {
    "allotment_held_within_capacity": ("allotment", test_store.test_the_last_room_is_sold_once),
    "orders_hold_every_night": ("orders", test_store.test_a_night_that_is_not_on_sale_cannot_be_booked),
    "requests_once": ("requests", test_idempotency.test_the_same_request_many_times_at_once_acts_once),
    "entries_one_outcome": (
        "entries",
        test_payments.test_an_attempt_that_was_settled_as_uncharged_is_never_charged_later,
    ),
    "entries_one_refund": ("entries", test_payments.test_a_charge_is_given_back_once_and_that_can_be_counted),
    "outbox_aggregate_id_aggregate_version_key": ("outbox", test_bus.test_a_version_is_announced_once),
    "payments_pkey": ("payments", test_payments.test_an_approved_payment_is_never_charged_again),
    "messages_pkey": ("messages", test_messages.test_each_change_is_told_once_by_however_many_replicas),
}

# The error of a second guard, which refuses what the dropped constraint would have refused.
BACKED: dict[str, type[BaseException]] = {
    "allotment_held_within_capacity": asyncpg.CheckViolationError,  # allotment_shrinks_to_nominal
    "payments_pkey": asyncpg.UniqueViolationError,  # the outbox accepts each version once
}


def place(test: Callable[..., Awaitable[None] | None] | None) -> str:
    """The file and the name of a test."""
    if test is None:
        return "tests/model/test_model.py"
    return f"{Path(inspect.getfile(test)).relative_to(ROOT)}: {test.__name__}"


def changed(owner: Any, guard: Guard) -> Any:
    """The function or statement without the guard."""
    current = getattr(owner, guard.attribute)
    match current:
        case Statement():
            source = current.source
        case str():
            source = current
        case _:
            source = textwrap.dedent(inspect.getsource(current))
    assert source.count(guard.line) == 1, f"{guard.name}: the line occurs {source.count(guard.line)} times"
    mutated = source.replace(guard.line, guard.without)
    if isinstance(current, str | Statement):
        return type(current)(mutated)
    made: dict[str, Any] = {}
    exec(compile(mutated, inspect.getfile(current), "exec"), current.__globals__, made)  # noqa: S102 - that is the point
    return made[guard.attribute]


@pytest.fixture
def same_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hypothesis tries constants of all local modules that were imported so far: other tests would change the runs."""
    monkeypatch.setattr(providers, "_get_local_constants", Constants)
    monkeypatch.setattr(providers, "CONSTANTS_CACHE", LRUCache(1024))


@pytest.mark.usefixtures("same_runs")
def test_the_model_holds_with_every_guard_in_place() -> None:
    """Control: with every guard in place, the runs that detect a removed guard find nothing."""
    run_state_machine_as_test(SeededHotel, settings=settings(SEARCH, max_examples=60))


@pytest.mark.usefixtures("same_runs")
@pytest.mark.parametrize("guard", [guard for guard in GUARDS if guard.test is None], ids=lambda guard: guard.name)
def test_the_model_misses_a_rule(monkeypatch: pytest.MonkeyPatch, guard: Guard) -> None:
    """At least one run of the model ends with a violated invariant."""
    monkeypatch.setattr(guard.owner, guard.attribute, changed(guard.owner, guard))

    with pytest.raises(AssertionError):
        run_state_machine_as_test(SeededHotel, settings=SEARCH)


server = test_bus.server  # the fixture


@pytest.fixture
async def pages(mypage_database: Database, stack: Stack) -> AsyncIterator[Pages]:
    """Empty pages in NATS, whose guards these are."""
    async with pages_in_nats(mypage_database, stack) as kept:
        yield kept.pages


@pytest.fixture
def payments(pay_database: Database) -> pay_store.PostgresPayments:
    """Empty payments."""
    return pay_store.PostgresPayments(pay_database.autocommit)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two migrations."""
    return test_database.two_migrations(tmp_path)


# What a guard's test is parametrized with elsewhere.
CHOSEN = {"frozen_while": "reading", "then_paid": True}


@pytest.fixture
def at_hand(request: pytest.FixtureRequest) -> dict[str, Any]:
    """The arguments of a guard's test: no others are made, for each costs time."""
    told = request.node.callspec.params
    if "guard" in told:
        test = told["guard"].test
    else:
        test = noticing_tests()[told["where"]] if "where" in told else CONSTRAINTS[told["constraint"]][1]
    names = inspect.signature(test).parameters
    return {name: CHOSEN[name] if name in CHOSEN else request.getfixturevalue(name) for name in names}


@pytest.mark.parametrize("guard", [guard for guard in GUARDS if guard.test is not None], ids=lambda guard: guard.name)
async def test_a_real_store_misses_a_rule(
    monkeypatch: pytest.MonkeyPatch, guard: Guard, at_hand: dict[str, Any]
) -> None:
    """The test of the guard fails without it."""
    assert guard.test is not None
    monkeypatch.setattr(test_bus, "PATIENCE_SECONDS", 5.0)  # the guard's effect never comes: do not wait long
    monkeypatch.setattr(guard.owner, guard.attribute, changed(guard.owner, guard))

    assert await fails(guard.test, at_hand, with_error=guard.ends_with)


def noticing_tests() -> dict[str, Callable[..., Awaitable[None] | None]]:
    """The tests that must fail without their guard, by file and name."""
    tests = [guard.test for guard in GUARDS if guard.test is not None] + [test for _, test in CONSTRAINTS.values()]
    return {place(test): test for test in tests}


@pytest.mark.parametrize("where", noticing_tests())
async def test_the_test_of_a_guard_passes_unchanged(where: str, at_hand: dict[str, Any]) -> None:
    """A guard's test passes with the guard in place. conftest.py deselects this if the test is part of the same run."""
    test = noticing_tests()[where]

    done = test(**{name: at_hand[name] for name in inspect.signature(test).parameters})
    if inspect.isawaitable(done):
        await done


@pytest.mark.parametrize("constraint", CONSTRAINTS)
async def test_a_database_misses_a_constraint(constraint: str, databases: Databases, at_hand: dict[str, Any]) -> None:
    """The test of the constraint fails without it."""
    table, test = CONSTRAINTS[constraint]
    error = BACKED.get(constraint, AssertionError)
    [url] = databases.in_use  # the one of `at_hand`
    connection = await asyncpg.connect(url)
    if constraint.startswith("entries"):  # partial unique indexes, not constraints
        await connection.execute(f"DROP INDEX {constraint}")
    else:
        await connection.execute(f"ALTER TABLE {table} DROP CONSTRAINT {constraint}")
    await connection.close()

    assert await fails(test, at_hand, with_error=error)


async def fails(
    test: Callable[..., Awaitable[None] | None], at_hand: dict[str, Any], *, with_error: type[BaseException]
) -> bool:
    """Whether a test ends with this error. Any other error is raised, because it says nothing about the guard."""
    # If nothing is raised, pytest.raises fails the test with an exception of its own.
    expected = (AssertionError, pytest.fail.Exception) if with_error is AssertionError else with_error
    try:
        done = test(**{name: at_hand[name] for name in inspect.signature(test).parameters})
        if inspect.isawaitable(done):
            await done
    except expected:
        return True
    return False


def test_the_documents_list_is_this_one() -> None:
    """docs/guards.md lists every guard and constraint with the test that fails without it."""
    listed = (ROOT / "docs" / "guards.md").read_text()

    for guard in GUARDS:
        assert f"| {guard.name} | {place(guard.test)} |" in listed
    for constraint, (table, test) in CONSTRAINTS.items():
        assert f"| constraint `{constraint}` of `{table}` | {place(test)} |" in listed
