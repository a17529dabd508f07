"""The current call's deadline."""

import time
from contextvars import ContextVar

MAX_CALL_SECONDS = 10.0
RESERVED_FOR_THE_ANSWER_SECONDS = 0.1

_deadline: ContextVar[float] = ContextVar("deadline")


def enter(time_remaining: float | None) -> None:
    """Starts a call that may take this many seconds, at most MAX_CALL_SECONDS."""
    seconds = MAX_CALL_SECONDS if time_remaining is None else min(time_remaining, MAX_CALL_SECONDS)
    _deadline.set(time.monotonic() + seconds)


def remaining_seconds() -> float:
    """The remaining time of the current call, minus what the response needs."""
    return _deadline.get(time.monotonic() + MAX_CALL_SECONDS) - time.monotonic() - RESERVED_FOR_THE_ANSWER_SECONDS
