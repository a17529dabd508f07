"""Erases personal data: `gotohotel forget`.

redactions  events in the stream and its archive are replaced by copies without it
tables      the rows of the services

What each service erases by itself, some days after the stay, are phone numbers in its own tables.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date

from ops import dead_letters
from ops.addresses import Addresses
from ops.errors import StackError
from ops.forget.redactions import Redaction, Redactions
from ops.forget.tables import Tables
from ops.rebuild import no_rebuild
from ops.stream import archive_locked, jetstream


@dataclass(frozen=True, slots=True)
class Forgotten:
    """Orders whose data is erased, orders that are kept until they have ended, and the number of replaced events."""

    orders: Sequence[str]
    kept: Sequence[str]
    events: int


async def forget_guest(stack: Addresses, subject: str) -> Forgotten:
    """Erases name and phone number of a guest, in every order that is canceled or whose stay is over. Safe to repeat.

    Raises StackError, before anything is erased, if there is no such guest, or if a service has not handled an event of
    these orders yet.
    """
    if not (subject.isascii() and subject.isprintable()):
        raise StackError("A subject has printable ASCII characters only.")
    with archive_locked(stack):
        async with jetstream(stack) as js, no_rebuild(stack, js) as discard_rebuild, Tables.open(stack, js) as tables:
            ended, kept = await tables.orders_of(subject)
            if not ended and not kept:
                raise StackError(f"There is no order of {subject!r}.")
            redaction = Redaction(orders=frozenset(ended))
            await _refuse_dead_letters(stack, redaction)
            await tables.require_published(ended)  # first: what is published now is in the stream
            redactions = await Redactions.of_now(stack, js, redaction)
            await redactions.require_handled()
            await _refuse_dead_letters(stack, redaction)  # again: an event that became one counts as handled
            await discard_rebuild()
            await tables.erase(ended)
            return Forgotten(ended, kept, await redactions.replace())


async def forget_numbers(stack: Addresses, before: date) -> int:
    """Erases the phone numbers of stays that ended before a date from events; returns the number of replaced events.

    Raises StackError, before anything is erased, if a service has not handled one of these events yet.
    """
    with archive_locked(stack):
        async with jetstream(stack) as js, no_rebuild(stack, js) as discard_rebuild:
            redaction = Redaction(before=before.isoformat())
            await _refuse_dead_letters(stack, redaction)
            redactions = await Redactions.of_now(stack, js, redaction)
            await redactions.require_handled()
            await _refuse_dead_letters(stack, redaction)
            await discard_rebuild()
            return await redactions.replace()


async def _refuse_dead_letters(stack: Addresses, redaction: Redaction) -> None:
    letters = await dead_letters.every(stack)
    numbers = [
        str(each.number)
        for each in letters
        if redaction.of(each.subject, each.payload) is not None
        or redaction.is_unreadable(each.subject, each.aggregate, each.payload)
    ]
    if numbers:
        raise StackError(
            f"The dead letters {', '.join(numbers)} hold what is to be erased: redrive or drop them first. "
            "Nothing was erased."
        )


__all__ = ["Forgotten", "forget_guest", "forget_numbers"]
