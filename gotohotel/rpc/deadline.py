"""The current call's deadline."""

import time
from contextvars import ContextVar

MAX_CALL_SECONDS = 10.0
RESERVED_FOR_THE_ANSWER_SECONDS = 0.1

_deadline: ContextVar[float] = ContextVar("deadline")


def enter(time_remaining: float | None) -> None:
    """Starts a call that may take this many seconds, at most MAX_CALL_SECONDS.

    None left means that nobody waits for this call, or that this machine's clock is ahead of gRPC's: then it may take
    MAX_CALL_SECONDS.
    """
    _deadline.set(time.monotonic() + min(time_remaining or MAX_CALL_SECONDS, MAX_CALL_SECONDS))


def remaining_seconds() -> float:
    """The remaining time of the current call, minus what the response needs."""
    return _deadline.get(time.monotonic() + MAX_CALL_SECONDS) - time.monotonic() - RESERVED_FOR_THE_ANSWER_SECONDS
