"""What one process knows of the request ids that its own calls act under."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from gotohotel.database import TRANSIENT

# A call that works under a claim renews it every second. One that was not renewed for so long belongs to a process that
# has died or can't reach the database: a repetition takes it over, and has time left to act within its own deadline.
RENEW_SECONDS = 1.0
ABANDONED_AFTER_SECONDS = 3


@dataclass(frozen=True, slots=True)
class IdempotencyKey:
    """Who asked for what under which id, and a keyed hash of the body (it may hold a card number)."""

    subject: str
    method: str
    request_id: str
    fingerprint: bytes

    @property
    def key(self) -> tuple[str, str, str]:
        """The primary key."""
        return self.subject, self.method, self.request_id


class LiveClaims:
    """The claims that calls of this process act under, and those whose last call has ended without an answer."""

    def __init__(self) -> None:
        # How many calls act under a claim now, and since when. Two: a duplicate does not know yet that it is one.
        self._live: dict[tuple[str, str, str], tuple[int, float]] = {}
        # When the last call under a claim ended without leaving an answer; oldest first.
        self._ended: dict[tuple[str, str, str], float] = {}

    @contextmanager
    def acting(self, claim: IdempotencyKey | None) -> Iterator[None]:
        """While a call acts under a claim, repetitions wait for it, in this process and in others (`to_renew`).

        If it ends because the database is unavailable, its claim may have been stored all the same. It is then
        orphaned: as soon as no other call acts under it, a repetition takes it over at once.
        """
        if claim is None:
            yield
            return
        count, since = self._live.get(claim.key, (0, time.monotonic()))
        self._live[claim.key] = count + 1, since
        try:
            yield
        except TRANSIENT:
            self.note_ended(claim)
            raise
        finally:
            count, since = self._live.pop(claim.key)
            if count > 1:
                self._live[claim.key] = count - 1, since

    def to_renew(self) -> list[tuple[str, str, str]]:
        """The keys of calls that take longer than a second, in their order."""
        old = time.monotonic() - RENEW_SECONDS
        return sorted(key for key, (_, since) in self._live.items() if since < old)

    def note_ended(self, claim: IdempotencyKey | None) -> None:
        """The call has ended without leaving an answer."""
        if claim is not None:
            now = time.monotonic()
            while self._ended and now - next(iter(self._ended.values())) > ABANDONED_AFTER_SECONDS:
                del self._ended[next(iter(self._ended))]  # anybody may take it over by now
            self._ended.pop(claim.key, None)
            self._ended[claim.key] = now

    def is_orphaned(self, claim: IdempotencyKey) -> bool:
        """Whether a call of this process has ended without an answer, and no other acts under the claim."""
        return claim.key in self._ended and claim.key not in self._live

    def forget(self, claim: IdempotencyKey) -> None:
        """The claim was taken over."""
        self._ended.pop(claim.key, None)
