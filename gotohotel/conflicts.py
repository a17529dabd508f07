"""Repeats what lost a race: somebody else saved the same aggregate in between."""

from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt

from gotohotel.domain import Conflict

MAX_ATTEMPTS = 3


def until_saved() -> AsyncRetrying:
    """Attempts of a step that loads, tells and saves; after MAX_ATTEMPTS the Conflict is raised.

    async for attempt in until_saved():
        with attempt:
            ...  # from the second attempt on (`is_repetition`): load again what is stored now
    """
    return AsyncRetrying(retry=retry_if_exception_type(Conflict), stop=stop_after_attempt(MAX_ATTEMPTS), reraise=True)


def is_repetition(attempt: object) -> bool:
    """Whether an attempt follows a lost race."""
    return attempt.retry_state.attempt_number > 1  # type: ignore[attr-defined, no-any-return]
