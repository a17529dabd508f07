"""The request ids that the running calls of this process have claimed."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from gotohotel.database import TRANSIENT

# A running call renews its claim every second. A claim that was not renewed for this long belongs to a process that
# died or lost the database: a repeated request takes it over, and still has time to act within its own deadline.
RENEW_SECONDS = 1.0
ABANDONED_AFTER_SECONDS = 3


@dataclass(frozen=True, slots=True)
class IdempotencyKey:
    """Who sent which request id for which method, and a keyed hash of the body (which may contain a card number)."""

    subject: str
    method: str
    request_id: str
    fingerprint: bytes

    @property
    def key(self) -> tuple[str, str, str]:
        """The primary key."""
        return self.subject, self.method, self.request_id


class LiveClaims:
    """The claims of running calls of this process, and those whose last call ended without an answer."""

    def __init__(self) -> None:
        # How many calls hold a claim, and since when. It can be two: a duplicate does not know yet that it is one.
        self._live: dict[tuple[str, str, str], tuple[int, float]] = {}
        # When the last call of a claim ended without an answer; oldest first.
        self._ended: dict[tuple[str, str, str], float] = {}

    @contextmanager
    def acting(self, claim: IdempotencyKey | None) -> Iterator[None]:
        """Marks a claim as held while a call runs: repeated requests wait for it, in this process and in others
        (`to_renew`). If the call ends because the database is unavailable, its claim may have been stored all the same.
        The claim is then orphaned: as soon as no other call holds it, a repeated request takes it over at once.
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
        """The keys of calls that have run for more than a second, sorted."""
        old = time.monotonic() - RENEW_SECONDS
        return sorted(key for key, (_, since) in self._live.items() if since < old)

    def note_ended(self, claim: IdempotencyKey | None) -> None:
        """Records that the call ended without an answer."""
        if claim is not None:
            now = time.monotonic()
            while self._ended and now - next(iter(self._ended.values())) > ABANDONED_AFTER_SECONDS:
                del self._ended[next(iter(self._ended))]  # by now the claim may be taken over anyway
            self._ended.pop(claim.key, None)
            self._ended[claim.key] = now

    def is_orphaned(self, claim: IdempotencyKey) -> bool:
        """Whether a call of this process ended without an answer and no other call holds the claim."""
        return claim.key in self._ended and claim.key not in self._live

    def forget(self, claim: IdempotencyKey) -> None:
        """Removes an orphaned claim that was taken over."""
        self._ended.pop(claim.key, None)
