"""Which function runs whenever an event has happened.

A service hands in `open_work`, which loads what a batch of events is about and saves it at the end:

    policies = Policies(open_work)

    @policies.whenever(PaymentApproved)
    def take_reservation(event: PaymentApproved, work: UnitOfWork) -> None: ...

An event may have several policies; they run in the order in which they were registered, in one transaction.
Policies are plain functions over loaded aggregates. One may see an event before the one that caused it, and
the same event again: it records facts, and never assumes an order.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from google.protobuf.message import Message

from gotohotel.database import Connection

UnitOfWork = TypeVar("UnitOfWork")
E = TypeVar("E", bound=Message)


@dataclass(frozen=True, slots=True)
class ReceivedEvent:
    """An event as it was received: its id, its aggregate, and its message."""

    event_id: str
    aggregate_id: str
    traceparent: str
    message: Message


class Policies(Generic[UnitOfWork]):
    """A service's policies, by event type."""

    def __init__(
        self, open_work: Callable[[Connection, Sequence[ReceivedEvent]], AbstractAsyncContextManager[UnitOfWork]]
    ) -> None:
        self._open_work = open_work
        self._handlers: dict[str, list[Callable[[Any, UnitOfWork], None]]] = {}
        self._types: dict[str, type[Message]] = {}

    def whenever(
        self, event_type: type[E]
    ) -> Callable[[Callable[[E, UnitOfWork], None]], Callable[[E, UnitOfWork], None]]:
        """Registers a function for an event type, after those already registered for it."""
        subject = event_type.DESCRIPTOR.full_name

        def register(handler: Callable[[E, UnitOfWork], None]) -> Callable[[E, UnitOfWork], None]:
            self._handlers.setdefault(subject, []).append(handler)
            self._types[subject] = event_type
            return handler

        return register

    def using(
        self, open_work: Callable[[Connection, Sequence[ReceivedEvent]], AbstractAsyncContextManager[UnitOfWork]]
    ) -> "Policies[UnitOfWork]":
        """The same policies with another store."""
        other = Policies(open_work)
        other._handlers, other._types = self._handlers, self._types
        return other

    @property
    def subjects(self) -> list[str]:
        """The full names of the events that have policies."""
        return sorted(self._handlers)

    def parse(self, subject: str, payload: bytes) -> Message:
        """Parses an event. Raises KeyError or DecodeError if this release can't read it."""
        return self._types[subject].FromString(payload)

    async def apply(self, connection: Connection, arrivals: Sequence[ReceivedEvent]) -> None:
        """Runs the policies of a batch inside the caller's transaction."""
        async with self._open_work(connection, arrivals) as work:
            self.run(arrivals, work)

    def run(self, arrivals: Sequence[ReceivedEvent], work: UnitOfWork) -> None:
        """Runs the policies on a unit of work that is loaded already."""
        for arrival in arrivals:
            for handler in self._handlers[arrival.message.DESCRIPTOR.full_name]:
                handler(arrival.message, work)
