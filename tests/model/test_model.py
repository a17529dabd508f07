"""Order, payment, reservation and My page as one state machine: the audit finds nothing, whatever happens.

`make test ARGS="tests/model --hypothesis-seed=N"` repeats a run; Hypothesis prints N and the steps of a failure.
"""

import random

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from reservation_svc.domain import Status
from tests.model.hotel import Hotel, Mood

ACTS = ["pay", "pay", "pay", "cancel", "cancel", "confirm", "desk cancel", "reject"]
STAYS = [slice(0, 1), slice(1, 2), slice(2, 3), slice(0, 2), slice(1, 3)]
WHICH = st.integers(min_value=0, max_value=1000)
SEEDS = st.integers(min_value=0, max_value=2**32)


class TheHotel(RuleBasedStateMachine):
    """Calls of guests and the desk, interleaved step by step with network failures, jobs, relays and kill -9."""

    @initialize(seed=SEEDS, closes_unseen_keys=st.booleans())
    def open(self, seed: int, closes_unseen_keys: bool) -> None:
        """Opens an empty hotel with two rooms, three nights and one of the two kinds of card processor."""
        self.hotel = Hotel(closes_unseen_keys=closes_unseen_keys)
        self.last_seed = seed

    @rule(nights=st.sampled_from(STAYS), request=st.sampled_from([None, "r1"]), pays=st.booleans(), alone=st.booleans())
    def place(self, nights: slice, request: str | None, pays: bool, alone: bool) -> None:
        """A guest books, perhaps with a request id that was used before. If `alone`, nothing else runs meanwhile."""
        work = self.hotel.place(nights, request, pays=pays)
        if alone:
            self.hotel.finish(work)

    @precondition(lambda self: self.hotel.orders.rows)
    @rule(which=st.integers(1, 3), acts=st.lists(st.sampled_from(ACTS), min_size=1, max_size=3))
    def call(self, which: int, acts: list[str]) -> None:
        """Starts several calls at once about one of the latest orders, whatever its state."""
        order_id = list(self.hotel.orders.rows)[-which:][0]
        for act in acts:
            match act:
                case "pay":
                    self.hotel.pay(order_id)
                case "cancel":
                    self.hotel.cancel(order_id)
                case "confirm":
                    self.hotel.confirm(order_id)
                case "desk cancel":
                    self.hotel.end(order_id, Status.CANCELED)
                case _:
                    self.hotel.end(order_id, Status.REJECTED)

    @precondition(lambda self: self.hotel.orders.rows)
    @rule()
    def expire(self) -> None:
        """Time passes, and the expiry job starts."""
        self.hotel.expire()

    @rule(seed=SEEDS, steps=st.integers(1, 40))
    def walk(self, seed: int, steps: int) -> None:
        """Performs some steps of everything that is under way, in any order; some of them fail."""
        chance = random.Random(seed)
        mood = Mood(chance)
        for _ in range(steps):
            self.hotel.step(chance, mood)

    @precondition(lambda self: self.hotel.steps.waiting)
    @rule(which=WHICH)
    def crash(self, which: int) -> None:
        """kill -9 between two steps."""
        waiting = list(self.hotel.steps.waiting)
        self.hotel.kill(waiting[which % len(waiting)])

    @rule(seed=SEEDS, rarely=st.integers(0, 3))
    def rest(self, seed: int, rarely: int) -> None:
        """Lets all work end, in a quarter of the cases."""
        if rarely == 0:
            self.come_to_rest(seed)

    def come_to_rest(self, seed: int) -> None:
        """Runs everything that was started to its end, in any order; then no invariant is violated."""
        chance = random.Random(seed)
        mood = Mood(chance)
        while self.hotel.step(chance, mood):
            pass
        assert not self.hotel.violations()

    def teardown(self) -> None:
        """Every run ends with all work done and no invariant violated."""
        if hasattr(self, "hotel"):
            try:
                self.come_to_rest(self.last_seed)
            finally:
                self.hotel.close()


TheHotel.TestCase.settings = settings(
    max_examples=300,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    print_blob=True,
)
TestTheHotel = TheHotel.TestCase
