"""Repeats a step whose save lost a race: another call or event changed the same aggregate in between."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt

from gotohotel.domain import Conflict

MAX_REPETITIONS = 2

T = TypeVar("T")


async def until_saved(step: Callable[[bool], Awaitable[T]]) -> T:
    """Runs a step that loads, tells and saves, and repeats it if its save lost a race: `step(True)` loads the stored
    state again. Raises the Conflict after MAX_REPETITIONS.
    """
    try:
        return await step(False)  # tenacity only when a repetition is needed: it costs 27 µs
    except Conflict:
        async for attempt in AsyncRetrying(
            retry=retry_if_exception_type(Conflict), stop=stop_after_attempt(MAX_REPETITIONS), reraise=True
        ):
            with attempt:
                return await step(True)
        raise
