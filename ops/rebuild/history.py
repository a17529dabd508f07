"""All events from the first one on: the archive's, then the stream's."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass

from google.protobuf.message import DecodeError
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

from gotohotel.bus.streams import EVENTS
from gotohotel.policies import ReceivedEvent
from mypage_svc.policies import policies
from ops.addresses import Addresses
from ops.errors import StackError
from ops.stream import archived_until, archives, stream_id

FETCH = 2000
READ_AHEAD = 2  # batches


@dataclass(frozen=True, slots=True)
class Position:
    """How far events have been read. A stream that is created anew counts from 1 again, and sorts after the others."""

    stream: str = ""
    sequence: int = 0

    def reaches(self, stream: str, sequence: int) -> bool:
        """Whether this event has been read."""
        return (stream, sequence) <= (self.stream, self.sequence)


@dataclass(frozen=True, slots=True)
class Batch:
    """Some events, and the position behind them. `skipped`: how many more can't be parsed."""

    events: list[ReceivedEvent]
    skipped: int
    position: Position


class History:
    """Reads the events of My page's policies after a position."""

    def __init__(self, stack: Addresses, js: JetStreamContext, position: Position) -> None:
        self._stack = stack
        self._js = js
        self._position = position

    async def count(self) -> int:
        """How many messages there are to read now."""
        stream = await stream_id(self._js)
        archived = [
            archive.last - archive.first + 1
            for archive in archives(self._stack)
            if not self._position.reaches(archive.stream, archive.last)
        ]
        state = (await self._js.stream_info(str(EVENTS.name))).state
        first = await self._first_in_stream(stream)
        return sum(archived) + max(0, state.last_seq - max(first, state.first_seq) + 1)

    async def batches(self) -> AsyncIterator[Batch]:
        """The events up to the last one that is there now. A further call goes on after it.

        The next batches are read while the caller works on one. Raises StackError if events that NATS has sent did not
        arrive.
        """
        ready: asyncio.Queue[Batch | BaseException | None] = asyncio.Queue(READ_AHEAD)

        async def read() -> None:
            try:
                async with aclosing(self._read()) as batches:
                    async for batch in batches:
                        await ready.put(batch)
                await ready.put(None)
            except Exception as error:  # noqa: BLE001 - raised where the batches are taken
                await ready.put(error)

        reading = asyncio.create_task(read())
        try:
            while (batch := await ready.get()) is not None:
                if isinstance(batch, BaseException):
                    raise batch
                self._position = batch.position
                yield batch
        finally:
            reading.cancel()
            await asyncio.wait([reading])

    async def _read(self) -> AsyncGenerator[Batch, None]:
        for archive in archives(self._stack):
            if self._position.reaches(archive.stream, archive.last):
                continue
            found = _Found(archive.stream)
            for message in archive.read():
                if not self._position.reaches(archive.stream, message.sequence):
                    found.add(message.sequence, message.subject, message.headers, message.data)
                if len(found.events) == FETCH:
                    yield found.take()
            yield found.take()
        async for batch in self._read_stream(await stream_id(self._js)):
            yield batch

    async def _first_in_stream(self, stream: str) -> int:
        done = self._position.sequence if self._position.stream == stream else 0
        return max(done, await archived_until(self._stack, self._js)) + 1

    async def _read_stream(self, stream: str) -> AsyncIterator[Batch]:
        reader = ConsumerConfig(
            filter_subjects=policies.subjects,
            deliver_policy=DeliverPolicy.BY_START_SEQUENCE,
            opt_start_seq=await self._first_in_stream(stream),
            ack_policy=AckPolicy.NONE,
            inactive_threshold=30,
            mem_storage=True,
        )
        pull = await self._js.pull_subscribe("", stream=EVENTS.name, config=reader)
        try:
            left, received, found = (await pull.consumer_info()).num_pending or 0, 0, _Found(stream)
            while received < left:
                for message in await pull.fetch(min(left - received, FETCH), timeout=5):
                    received += 1
                    place = message.metadata.sequence
                    if place.consumer != received:
                        raise StackError("NATS has sent events that did not arrive; try again.")
                    found.add(place.stream, message.subject, message.headers or {}, message.data)
                yield found.take()
        finally:
            await pull.unsubscribe()


class _Found:
    """Collects a batch."""

    def __init__(self, stream: str) -> None:
        self._stream = stream
        self._sequence = 0
        self._skipped = 0
        self.events: list[ReceivedEvent] = []

    def add(self, sequence: int, subject: str, headers: Mapping[str, str], data: bytes) -> None:
        """An event of the stream; only those that have policies count."""
        self._sequence = sequence
        if subject not in policies.subjects:
            return
        try:
            event = ReceivedEvent(headers["ce-id"], headers["ce-subject"], "", policies.parse(subject, data))
            self.events.append(event)
        except (KeyError, DecodeError):
            self._skipped += 1  # can't be parsed: a dead letter

    def take(self) -> Batch:
        """What was collected since the last batch."""
        batch = Batch(self.events, self._skipped, Position(self._stream, self._sequence))
        self.events, self._skipped = [], 0
        return batch
