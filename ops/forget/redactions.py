"""Replaces events by copies without personal data.

A copy has the same id, version and time, so that it is the same event to a rebuild and to the audit. It goes to no
service that is there now, for each has handled the event, but to one that is added later.
"""

from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import DecodeError, Message
from nats.js import JetStreamContext
from nats.js.api import ConsumerInfo

from gotohotel.bus.consumer import HANDLED_BY, NOBODY, REDRIVE_FOR
from gotohotel.bus.streams import EVENTS
from ops.addresses import Addresses
from ops.errors import StackError
from ops.events import TYPES
from ops.stream import PUBLISHED_AT, StreamMessage, archives, messages_of, rewrite_archives


@dataclass(frozen=True, slots=True)
class Redaction:
    """What is erased: everything in the events of some orders, or the numbers of stays that ended before a date."""

    orders: frozenset[str] = frozenset()
    before: str = ""

    def of(self, subject: str, data: bytes) -> bytes | None:
        """An event without the data; None if there is nothing in it to erase."""
        event = parse(subject, data)
        if event is None or not event.DESCRIPTOR.fields_by_name.get("booking"):
            return None
        booking: Any = event.booking  # type: ignore[attr-defined]
        before = booking.SerializeToString()
        if event.order_id in self.orders:  # type: ignore[attr-defined]
            booking.name = booking.phone_no = ""
        elif self.before and "" < booking.check_out < self.before:
            booking.phone_no = ""
        return event.SerializeToString() if booking.SerializeToString() != before else None

    def is_unreadable(self, subject: str, aggregate: str, data: bytes) -> bool:
        """Whether this is an event of these orders of which this release can't say what is in it."""
        return aggregate in self.orders and parse(subject, data) is None


def parse(subject: str, data: bytes) -> Message | None:
    """An event; None if this release can't read it."""
    try:
        return TYPES[subject].FromString(data) if subject in TYPES else None
    except DecodeError:
        return None


class Redactions:
    """The events that a redaction concerns, among those that are in the stream now, or archived."""

    def __init__(self, stack: Addresses, js: JetStreamContext, redaction: Redaction, *, last: int) -> None:
        self._stack = stack
        self._js = js
        self._redaction = redaction
        self._last = last
        self._handled_by: defaultdict[str, list[str]] = defaultdict(list)  # subject → services

    @classmethod
    async def of_now(cls, stack: Addresses, js: JetStreamContext, redaction: Redaction) -> "Redactions":
        """Later events are left alone: nobody has looked whether they were handled."""
        state = (await js.stream_info(str(EVENTS.name))).state
        return cls(stack, js, redaction, last=state.last_seq)

    async def require_handled(self) -> None:
        """Raises StackError if a service has not handled one of them yet: it would never get it."""
        self._refuse_unreadable(message for archived in archives(self._stack) for message in archived.read())
        consumers = [each for each in await self._js.consumers_info(str(EVENTS.name)) if each.config.durable_name]
        async with aclosing(messages_of(self._js, str(EVENTS.name))) as messages:
            async for message in messages:
                if message.sequence > self._last:
                    break
                self._refuse_unreadable([message])
                if self._redaction.of(message.subject, message.data) is not None:
                    self._require_handled(message, consumers)
        for consumer in consumers:
            for subject in _subjects(consumer):
                self._handled_by[subject].append(str(consumer.config.durable_name))

    @staticmethod
    def _require_handled(message: StreamMessage, consumers: Sequence[ConsumerInfo]) -> None:
        for consumer in consumers:
            is_behind = consumer.num_pending or consumer.num_ack_pending
            floor = consumer.ack_floor.stream_seq if consumer.ack_floor else 0
            if is_behind and message.subject in _subjects(consumer) and message.sequence > floor:
                raise StackError(
                    f"{consumer.config.durable_name} has not handled all events of these orders: try again later. "
                    "Nothing was erased."
                )

    def _refuse_unreadable(self, messages: Iterable[StreamMessage]) -> None:
        for message in messages:
            if self._redaction.is_unreadable(message.subject, message.headers.get("ce-subject", ""), message.data):
                raise StackError(
                    f"The event {message.sequence} ({message.subject}) of one of these orders can't be read by this "
                    "release: use the one that wrote it. Nothing was erased."
                )

    async def replace(self) -> int:
        """Replaces them; returns how many there were. After an interruption a copy may be there twice, which does no
        harm, and the original is found again.
        """
        count = rewrite_archives(self._stack, self._redaction.of)
        async for message, data in self._found():
            headers = {
                **message.headers,
                "Nats-Msg-Id": f"forget/{message.sequence}",
                PUBLISHED_AT: message.headers.get(PUBLISHED_AT, message.time.isoformat()),
                REDRIVE_FOR: NOBODY,
                HANDLED_BY: ",".join(self._handled_by[message.subject]),
            }
            headers.pop("Nats-Expected-Stream", None)
            await self._js.publish(message.subject, data, stream=EVENTS.name, headers=headers)
            await self._js.delete_msg(str(EVENTS.name), message.sequence)  # and overwrites it on the disk
            count += 1
        return count

    async def _found(self) -> AsyncIterator[tuple[StreamMessage, bytes]]:
        later = 0
        async for message in messages_of(self._js, str(EVENTS.name)):
            if (data := self._redaction.of(message.subject, message.data)) is None:
                continue
            if message.sequence <= self._last:
                yield message, data
            else:
                later += 1
        if later:
            raise StackError(f"{later} events were published meanwhile: run it again.")


def _subjects(consumer: ConsumerInfo) -> list[str]:
    return consumer.config.filter_subjects or [consumer.config.filter_subject or ""]
