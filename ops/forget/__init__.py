"""Erases personal data: `gotohotel forget`.

events  events in the stream and its archive are replaced by copies without it
tables  the rows of the services

What each service erases by itself, some days after the stay, are phone numbers in its own tables.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date

from ops import dead_letters
from ops.errors import StackError
from ops.forget.events import Events, Redaction
from ops.forget.tables import Tables
from ops.rebuild import no_rebuild
from ops.stack import Stack
from ops.stream import jetstream


@dataclass(frozen=True, slots=True)
class Forgotten:
    """Orders whose data is erased, orders that are kept until they have ended, and the number of replaced events."""

    orders: Sequence[str]
    kept: Sequence[str]
    events: int


async def forget_guest(stack: Stack, subject: str) -> Forgotten:
    """Erases name and phone number of a guest, in every order that is canceled or whose stay is over. Safe to repeat.

    Raises StackError, before anything is erased, if a service has not handled an event of these orders yet.
    """
    async with jetstream(stack) as js, no_rebuild(stack, js), Tables.open(stack, js) as tables:
        ended, kept = await tables.orders_of(subject)
        await _refuse_dead_letters(stack, ended)
        events = Events(stack, js, Redaction(orders=frozenset(ended)))
        await events.require_handled()
        await tables.require_published(ended)
        await tables.erase(ended)
        return Forgotten(ended, kept, await events.replace())


async def forget_numbers(stack: Stack, before: date) -> int:
    """Erases the phone numbers of stays that ended before a date from events; returns the number of replaced events.

    Raises StackError, before anything is erased, if a service has not handled one of these events yet.
    """
    async with jetstream(stack) as js, no_rebuild(stack, js):
        events = Events(stack, js, Redaction(before=before.isoformat()))
        await events.require_handled()
        return await events.replace()


async def _refuse_dead_letters(stack: Stack, orders: Sequence[str]) -> None:
    numbers = [str(letter.number) for letter in await dead_letters.every(stack) if letter.aggregate in orders]
    if numbers:
        raise StackError(
            f"The dead letters {', '.join(numbers)} are about this guest: redrive or drop them first. "
            "Nothing was erased."
        )


__all__ = ["Forgotten", "forget_guest", "forget_numbers"]
