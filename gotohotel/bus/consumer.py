"""Delivers events to policies in batches. Events that can't be handled go to the dead letters."""

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import asyncpg
import nats.errors
from google.protobuf.message import DecodeError, Message
from nats.aio.msg import Msg

from gotohotel import inbox, trace
from gotohotel.bus.connection import Bus
from gotohotel.bus.pull import ConsumerLost, Pull
from gotohotel.bus.streams import DEAD_LETTERS, EVENTS, declare_consumer
from gotohotel.conflicts import until_saved
from gotohotel.database import TRANSIENT, Database
from gotohotel.domain import Conflict
from gotohotel.log import in_short
from gotohotel.policies import Policies, ReceivedEvent

logger = logging.getLogger(__name__)

GATHER_SECONDS = 0.1
REDELIVERY_SECONDS = (1, 2, 5, 10, 30, 60)
HAND_BACK_SOON = 20  # deliveries; if no replica has taken the event by then, the newer release was rolled back
MAX_POISONED_IN_A_ROW = 3  # failures for this many aggregates in a row point at the release, not at the events
HALTED_SECONDS = 10.0
RETRY_SECONDS = 1.0

# Errors of a batch that is too much for the database at the moment: half of it may succeed.
TOO_MUCH_AT_ONCE = (asyncpg.QueryCanceledError, asyncpg.LockNotAvailableError)
# The only database errors that are caused by the event itself.
_NEVER_RIGHT = (asyncpg.IntegrityConstraintViolationError, asyncpg.DataError)

# Header naming the only consumer of a redriven event: the others have handled it, or have a dead letter of their own.
REDRIVE_FOR = "x-redrive-for"
# Or: no consumer that has handled it already (HANDLED_BY, names separated by commas). Earlier releases go by the first
# header alone.
NOBODY, HANDLED_BY = "nobody", "x-handled-by"

NOTE_SUBSCRIPTIONS = """
INSERT INTO subscriptions (subject, heard_since)
SELECT subject, CASE WHEN subject = ANY($2::text[]) THEN now() ELSE '-infinity' END
FROM unnest($1::text[]) AS subject
ON CONFLICT (subject) DO UPDATE  -- a replica that found the consumer widened already may have been faster
SET heard_since = excluded.heard_since
WHERE subscriptions.heard_since = '-infinity'
  AND excluded.heard_since > subscriptions.heard_since
"""


class Untrusted(Exception):
    """Nothing shows that the event is true."""


# Raises Untrusted for an event that must not be believed.
Requirement = Callable[[Message], None]


class ConsumerHalted(Exception):
    """Events of several aggregates in a row can't be handled: no more are moved to the dead letters until one can be
    handled.
    """


class Consumer:
    """A service's durable consumer: hands events to its policies."""

    def __init__(
        self,
        bus: Bus,
        policies: Policies[Any],
        database: Database,
        *,
        require: Requirement | None = None,
        gather_seconds: float = GATHER_SECONDS,
    ) -> None:
        self._bus = bus
        self._policies = policies
        self._require = require
        self._gather_seconds = gather_seconds
        self._database = database
        self._poisoned_in_a_row: set[str] = set()  # aggregates whose events failed since the last one that was handled
        self.has_handled = False  # whether this process has handled any event

    async def declare(self) -> None:
        """Creates the consumer on the server or brings it up to date, and records since when it receives which subject.

        Raises DeclarationDiffers.
        """
        subjects = self._policies.subjects
        added = await declare_consumer(self._bus.js, self._bus.name, subjects)
        await self._database.autocommit.execute(NOTE_SUBSCRIPTIONS, subjects, added)

    async def run(self, stopping: asyncio.Event) -> None:
        """Delivers events to the policies in batches, until `stopping` is set.

        Raises ConsumerHalted if one event after the other fails, ConsumerLost if the server has no such consumer.
        """
        async with self._pulling() as pull:
            while not stopping.is_set():
                try:
                    deliveries = await pull.next_batch(stopping)
                except (OSError, nats.errors.Error) as error:
                    if self._bus.client.is_closed:
                        raise ConsumerLost("the connection was closed for good") from error
                    logger.warning("consumer %s: NATS is away: %r", self._bus.name, error)
                    await asyncio.sleep(0.5)
                    continue
                if deliveries:
                    await self._handle(deliveries)
                    if self.is_halted:
                        raise ConsumerHalted(
                            f"events of {len(self._poisoned_in_a_row)} aggregates in a row can't be handled"
                        )
                    # The first event is handled at once; those that follow closely share a transaction.
                    await asyncio.sleep(self._gather_seconds)

    @asynccontextmanager
    async def _pulling(self) -> AsyncIterator[Pull]:
        arrived: asyncio.Queue[Msg] = asyncio.Queue()
        inbox_subject = self._bus.client.new_inbox()
        subscription = await self._bus.client.subscribe(inbox_subject, cb=arrived.put)
        try:
            yield Pull(
                self._bus.client, f"$JS.API.CONSUMER.MSG.NEXT.{EVENTS.name}.{self._bus.name}", inbox_subject, arrived
            )
        finally:
            with suppress(OSError, nats.errors.Error):
                await subscription.unsubscribe()

    async def _handle(self, deliveries: Sequence[Msg]) -> None:
        """Handles a batch in one transaction. A batch that contains a poisonous event is handled again one by one."""
        readable: list[tuple[Msg, ReceivedEvent]] = []
        untrusted: list[tuple[Msg, str, str]] = []  # with the event's id, and why
        for delivery in deliveries:
            if not self._is_for_us(delivery.headers or {}):
                await self._settle(delivery.ack())
                continue
            if delivery.subject not in self._policies.subjects:
                await self._hand_back(delivery)
                continue
            try:
                arrival = _read(delivery, self._policies)
                if self._require:
                    self._require(arrival.message)
                readable.append((delivery, arrival))
            except (KeyError, DecodeError) as error:
                await self._bury(delivery, f"unreadable: {in_short(error)}")
            except Untrusted as error:
                untrusted.append((delivery, arrival.event_id, str(error)))
        if untrusted:
            await self._refuse(untrusted)
        if not readable:
            return
        arrivals = [arrival for _, arrival in readable]
        try:
            await _apply_despite_conflicts(arrivals, self._policies, self._database)
        except TOO_MUCH_AT_ONCE as error:
            logger.warning("consumer %s: %d events take too long: %r", self._bus.name, len(readable), error)
            if len(readable) == 1:
                await self._try_again(readable[0][0], RETRY_SECONDS)
                return
            half = len(readable) // 2
            for part in (readable[:half], readable[half:]):
                await self._handle([delivery for delivery, _ in part])
        except Exception as error:  # noqa: BLE001 - the edge of events: one that can't be handled blocks no other
            if is_poison(error):
                await self._handle_one_by_one(readable, error)
                return
            await self._put_off([delivery for delivery, _ in readable], error)
        else:
            self._poisoned_in_a_row.clear()
            self.has_handled = True
            for delivery, _ in readable:
                await self._settle(delivery.ack())

    async def _put_off(self, deliveries: Sequence[Msg], error: Exception) -> None:
        logger.warning("consumer %s: %d events wait: %r", self._bus.name, len(deliveries), error)
        for delivery in deliveries:
            # Soon, however many attempts there were: everything works again as soon as the database does.
            await self._try_again(delivery, RETRY_SECONDS)
        await asyncio.sleep(RETRY_SECONDS)

    async def _refuse(self, untrusted: Sequence[tuple[Msg, str, str]]) -> None:
        """Passes over events that were handled before: once its guest's data is erased, an event does not fit its
        signature, and it may be published again. Any other one is a dead letter.
        """
        try:
            handled = await inbox.claimed(self._database.autocommit, [event_id for _, event_id, _ in untrusted])
        except (*TRANSIENT, asyncpg.PostgresError) as error:
            await self._put_off([delivery for delivery, _, _ in untrusted], error)
            return
        for delivery, event_id, why in untrusted:
            if event_id in handled:
                logger.warning("event %s was handled before, and does not count again: %s", event_id, why)
                await self._settle(delivery.ack())
            else:
                await self._bury(delivery, f"untrusted: {why}")

    def _is_for_us(self, headers: Mapping[str, str]) -> bool:
        """Whether an event is for this consumer, and not only for others."""
        consumer = headers.get(REDRIVE_FOR, self._bus.name)
        if consumer == NOBODY:
            return self._bus.name not in headers.get(HANDLED_BY, self._bus.name).split(",")
        return consumer == self._bus.name

    @property
    def is_halted(self) -> bool:
        """Whether the last events could not be handled, one after the other."""
        return len(self._poisoned_in_a_row) >= MAX_POISONED_IN_A_ROW

    async def _hand_back(self, delivery: Msg) -> None:
        """Returns an event that only a newer release knows, which shares this subscription; one of its replicas will
        take it.
        """
        logger.info("consumer %s: %s is for a newer release", self._bus.name, delivery.subject)
        soon = (delivery.metadata.num_delivered or 1) <= HAND_BACK_SOON
        await self._try_again(delivery, 2 * RETRY_SECONDS if soon else REDELIVERY_SECONDS[-1])

    async def _handle_one_by_one(self, readable: list[tuple[Msg, ReceivedEvent]], error: Exception) -> None:
        """Finds the event that can't be handled. A single one goes to the dead letters."""
        if len(readable) > 1:
            for delivery, _ in readable:
                await self._handle([delivery])
            return
        logger.error("event %s can't be handled", readable[0][1].event_id, exc_info=error)
        self._poisoned_in_a_row.add(readable[0][1].aggregate_id)
        if self.is_halted:  # if all of them fail, the cause is more likely this release than each event
            await self._try_again(readable[0][0], RETRY_SECONDS)
        else:
            await self._bury(readable[0][0], f"impossible: {in_short(error)}")

    async def _try_again(self, delivery: Msg, seconds: float) -> None:
        await self._settle(delivery.nak(delay=seconds * random.uniform(0.8, 1.2)))  # noqa: S311 - jitter

    async def _bury(self, delivery: Msg, reason: str) -> None:
        """Moves an event to the dead letters, with the reason and where it came from."""
        origin = delivery.metadata
        headers = {
            **(delivery.headers or {}),
            "Nats-Msg-Id": f"{self._bus.name}/{origin.sequence.stream}",
            "x-dead-reason": " ".join(reason.split())[:500],
            "x-dead-consumer": self._bus.name,
            "x-dead-subject": delivery.subject,
            "x-dead-sequence": str(origin.sequence.stream),
        }
        try:
            await self._bus.js.publish(
                f"dead.{self._bus.name}", delivery.data, stream=DEAD_LETTERS.name, headers=headers
            )
        except (OSError, TimeoutError, nats.errors.Error) as error:
            logger.warning("dead letter not kept yet: %s", error)
            deliveries = min(origin.num_delivered or 1, len(REDELIVERY_SECONDS))
            await self._try_again(delivery, REDELIVERY_SECONDS[deliveries - 1])
        else:
            logger.error("event %s of %s is a dead letter: %s", origin.sequence.stream, delivery.subject, reason)
            await self._settle(delivery.term())

    async def _settle(self, settlement: Any) -> None:
        """Sends an ack, nak or term. If it is lost the event is redelivered, and the inbox recognises it."""
        try:
            await settlement
        except (OSError, nats.errors.Error) as error:
            logger.warning("consumer %s: an acknowledgement was lost: %s", self._bus.name, error)


def is_poison(error: Exception) -> bool:
    """Whether an event that failed with this error can't be handled at all: it would fail the same way every time."""
    if isinstance(error, _NEVER_RIGHT):
        return True
    return not isinstance(error, (*TRANSIENT, asyncpg.PostgresError, Conflict))


def _read(delivery: Msg, policies: Policies[Any]) -> ReceivedEvent:
    headers = delivery.headers or {}
    message = policies.parse(delivery.subject, delivery.data)
    # The event's own id, not the message's: a redriven event travels in another message.
    return ReceivedEvent(headers["ce-id"], headers["ce-subject"], headers.get("traceparent", ""), message)


async def _apply_despite_conflicts(
    arrivals: Sequence[ReceivedEvent], policies: Policies[Any], database: Database
) -> None:
    """Applies the batch; if a call changed one of the aggregates meanwhile, loads again and repeats."""
    await until_saved(lambda _: _apply(arrivals, policies, database))


async def _apply(arrivals: Sequence[ReceivedEvent], policies: Policies[Any], database: Database) -> None:
    trace.enter_batch({arrival.aggregate_id: arrival.traceparent for arrival in arrivals})
    async with database.transaction() as connection:
        fresh = await inbox.claim(connection, [arrival.event_id for arrival in arrivals])
        # A batch may contain the same event twice.
        chosen = {arrival.event_id: arrival for arrival in arrivals if arrival.event_id in fresh}
        if chosen:
            await policies.apply(connection, list(chosen.values()))
