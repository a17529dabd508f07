"""What a scenario is, and the list of all scenarios."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from chaos.rig import Rig


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One way to break the system.

    Without `load` only the scenario makes calls. With `one_retry_helps` no call may fail twice.
    """

    number: int
    name: str
    sentence: str
    run: Callable[[Rig], Awaitable[None]]
    load: bool
    one_retry_helps: bool


SCENARIOS: dict[int, Scenario] = {}


def scenario(
    number: int, sentence: str, *, load: bool = True, one_retry_helps: bool = False
) -> Callable[[Callable[[Rig], Awaitable[None]]], Callable[[Rig], Awaitable[None]]]:
    """Registers a scenario under its number and its function's name."""

    def register(run: Callable[[Rig], Awaitable[None]]) -> Callable[[Rig], Awaitable[None]]:
        name = run.__name__.replace("_", "-")
        if number in SCENARIOS:
            raise ValueError(f"two scenarios have the number {number}")
        SCENARIOS[number] = Scenario(
            number=number, name=name, sentence=sentence, run=run, load=load, one_retry_helps=one_retry_helps
        )
        return run

    return register
