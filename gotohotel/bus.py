"""NATS JetStream: declared streams and consumers, delivery in batches, dead letters."""

import asyncio
import json
import logging
import random
import time
from collections.abc import AsyncIterator, Sequence, Set
from contextlib import asynccontextmanager, suppress
from typing import Any

import asyncpg
import nats
import nats.errors
from google.protobuf.message import DecodeError
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.api import (
    AckPolicy,
    ConsumerConfig,
    DeliverPolicy,
    DiscardPolicy,
    StorageType,
    StreamConfig,
)
from nats.js.errors import NotFoundError

from gotohotel import inbox, trace
from gotohotel.conflicts import until_saved
from gotohotel.database import TRANSIENT, Database
from gotohotel.domain import Conflict
from gotohotel.log import in_short
from gotohotel.policies import Policies, ReceivedEvent

logger = logging.getLogger(__name__)

BATCH = 200
GATHER_SECONDS = 0.1
ACK_WAIT_SECONDS = 10.0  # longer than a batch can take; what a killed consumer held comes again after it
REDELIVERY_SECONDS = (1, 2, 5, 10, 30, 60)
HAND_BACK_SOON = 20  # deliveries; whoever is still alone with an event then was rolled back to
PUBLISH_SECONDS = 2.0  # without an acknowledgement for so long, an event counts as not published
# Events that are handed back for a newer release stay unacknowledged; they must not stop the others.
MAX_UNACKNOWLEDGED = 100_000
MAX_POISONED_IN_A_ROW = 3  # when events of so many aggregates in a row can't be handled, it is the release
HALTED_SECONDS = 10.0
NEARLY_FULL = 0.8
RETRY_SECONDS = 1.0

# A batch that is too much for the database at this moment: half of it may not be.
TOO_MUCH_AT_ONCE = (asyncpg.QueryCanceledError, asyncpg.LockNotAvailableError)
# Of all that a database says, only this speaks of the event itself.
_NEVER_RIGHT = (asyncpg.IntegrityConstraintViolationError, asyncpg.DataError)

# Everything that happened, until an operator moves the oldest to the archive. A full stream refuses (the row waits in
# its outbox) rather than forget. How large it may grow is up to the operator; this is for one that nobody has made yet.
EVENTS = StreamConfig(
    name="EVENTS",
    subjects=["gotohotel.*.v1.*"],
    storage=StorageType.FILE,
    discard=DiscardPolicy.NEW,
    max_bytes=1024**3,
    duplicate_window=600,
    allow_direct=True,
)
DEAD_LETTERS = StreamConfig(
    name="DEAD_LETTERS",
    subjects=["dead.*"],
    storage=StorageType.FILE,
    discard=DiscardPolicy.NEW,
    max_bytes=256 * 1024**2,
    duplicate_window=600,
    allow_direct=True,
)


# A pull asks for a batch; the server ends it after a second, so that after a restart of the server no wait is long.
PULL_SECONDS = 1.0
PULL = json.dumps({"batch": BATCH, "expires": int(PULL_SECONDS * 1_000_000_000)}).encode()
# Header naming the only consumer of a redriven event: the others have handled it, or have a dead letter of their own.
REDRIVE_FOR = "x-redrive-for"
REQUEST_IS_OVER = ("404", "408")


class ConsumerLost(Exception):
    """The server no longer knows the consumer, or refuses to go on with it."""


class DeclarationDiffers(Exception):
    """A stream or consumer on the server is not as this version declares it."""


class ConsumerHalted(Exception):
    """Events of several aggregates in a row can't be handled: none is buried any more until one can be handled."""


class Bus:
    """A service's connection to NATS. It may come and go while the service runs."""

    def __init__(self, url: str, *, name: str) -> None:
        self._url = url
        self._name = name
        self._closing = False
        self._poisoned_in_a_row: set[str] = set()  # aggregates whose events could not be handled, since one could be
        self.has_handled = False  # whether this process has handled any event
        self.last_acknowledged = time.monotonic()  # when the stream last answered a publish
        self.lost = asyncio.Event()  # set when the client has given up for good: the process has to end
        self._client = Client()
        self._js: JetStreamContext = self._client.jetstream(timeout=PUBLISH_SECONDS)

    @property
    def is_connected(self) -> bool:
        """Whether the server can be reached at this moment."""
        return bool(self._client.is_connected)

    async def connect(self, stopping: asyncio.Event) -> None:
        """Connects and declares the streams, however long it takes, unless `stopping` is set meanwhile.

        Later interruptions heal by themselves.
        """
        while not self._client.is_connected:
            if stopping.is_set():
                return
            if not self._client.is_reconnecting:
                await self._try_to_connect()
            if not self._client.is_connected:
                with suppress(TimeoutError):
                    async with asyncio.timeout(0.5):
                        await stopping.wait()
        for stream in (EVENTS, DEAD_LETTERS):
            await self._declare_stream(stream)

    async def _try_to_connect(self) -> None:
        try:
            self._client = await nats.connect(
                self._url,
                name=self._name,
                inbox_prefix=f"_INBOX.{self._name}",  # nobody else may listen to what it is answered
                connect_timeout=3,
                ping_interval=5,
                max_outstanding_pings=2,
                max_reconnect_attempts=-1,
                reconnect_time_wait=0.25,
                allow_reconnect=True,
                error_cb=self._log_error,
                closed_cb=self._note_closed,
                pending_size=0,  # fail at once while disconnected; the outbox is the buffer
            )
        except (OSError, TimeoutError, nats.errors.Error) as error:
            logger.warning("NATS can't be reached at %s: %r", self._url.rsplit("@")[-1], error)
        else:
            self._js = self._client.jetstream(timeout=PUBLISH_SECONDS)

    async def watch_the_stream(self) -> None:
        """Says in the log when the stream is nearly full: once it is, no event goes out any more."""
        if not self._client.is_connected:
            return  # there is nothing to be seen at this moment
        try:
            stream = await self._js.stream_info(str(EVENTS.name))
        except (OSError, TimeoutError, nats.errors.Error):
            return
        full = stream.state.bytes / (stream.config.max_bytes or 1)
        if full > NEARLY_FULL:
            logger.error(
                "the stream %s is %.0f %% full: give it more room (`gotohotel stream grow`) or move old events to the "
                "archive (`gotohotel stream archive`)",
                *(EVENTS.name, 100 * full),
            )

    async def close(self) -> None:
        """Sends what is written and disconnects."""
        self._closing = True
        with suppress(OSError, TimeoutError, nats.errors.Error):
            if self._client.is_connected:
                await self._client.flush(timeout=2)
            if self._client.is_connected or self._client.is_reconnecting:  # a client that never was can't be closed
                await self._client.close()

    async def publish_all(self, messages: Sequence[tuple[str, bytes, dict[str, str]]]) -> list[bool]:
        """Publishes (subject, payload, headers) in parallel; says of each whether the stream acknowledged it."""

        async def publish(subject: str, payload: bytes, headers: dict[str, str]) -> asyncio.Future[Any]:
            return await self._js.publish_async(
                subject, payload, wait_stall=PUBLISH_SECONDS, stream=EVENTS.name, headers=headers
            )

        acks: list[asyncio.Future[Any] | None] = []
        for message in messages:
            if self._is_too_large(*message):
                logger.error("publish: an event of %s is larger than NATS takes; it waits", message[0])
                acks.append(None)  # those of other aggregates go out all the same
                continue
            try:
                acks.append(await publish(*message))
            except (OSError, TimeoutError, nats.errors.Error) as error:
                logger.warning("publish: %s", error)
                # Each try that fails keeps a place among the client's open publishes: the rest of the wave waits.
                acks += [None] * (len(messages) - len(acks))
                break
        pending = [ack for ack in acks if ack is not None]
        if pending:
            answered, unanswered = await asyncio.wait(pending, timeout=PUBLISH_SECONDS)
            if answered:
                self.last_acknowledged = time.monotonic()
            for ack in unanswered:
                ack.cancel()  # gives its place among the client's open publishes back
        return [_acknowledged(ack) for ack in acks]

    def _is_too_large(self, subject: str, payload: bytes, headers: dict[str, str]) -> bool:
        """Whether the server would refuse a message. The client would only notice after it has taken a place for it."""
        written = sum(len(name) + len(value) + 4 for name, value in headers.items())
        return len(subject) + written + len(payload) + 64 > self._client.max_payload

    async def consume(self, policies: Policies[Any], database: Database, *, stopping: asyncio.Event) -> None:
        """Hands events to the policies in batches, until `stopping` is set.

        Raises ConsumerHalted if one after the other can't be handled, ConsumerLost if the server has no such consumer.
        """
        async with self._pulling() as pull:
            while not stopping.is_set():
                try:
                    deliveries = await pull.next_batch(stopping)
                except (OSError, nats.errors.Error) as error:
                    if self._client.is_closed:
                        raise ConsumerLost("the connection was closed for good") from error
                    logger.warning("consumer %s: NATS is away: %r", self._name, error)
                    await asyncio.sleep(0.5)
                    continue
                if deliveries:
                    await self._handle(deliveries, policies, database)
                    if self.is_halted:
                        raise ConsumerHalted(
                            f"events of {len(self._poisoned_in_a_row)} aggregates in a row can't be handled"
                        )
                    # The first event is handled at once; those that follow on its heels share a transaction.
                    await asyncio.sleep(GATHER_SECONDS)

    @asynccontextmanager
    async def _pulling(self) -> AsyncIterator["_Pull"]:
        arrived: asyncio.Queue[Msg] = asyncio.Queue()
        inbox_subject = self._client.new_inbox()
        subscription = await self._client.subscribe(inbox_subject, cb=arrived.put)
        try:
            yield _Pull(self._client, f"$JS.API.CONSUMER.MSG.NEXT.{EVENTS.name}.{self._name}", inbox_subject, arrived)
        finally:
            with suppress(OSError, nats.errors.Error):
                await subscription.unsubscribe()

    async def _handle(self, deliveries: Sequence[Msg], policies: Policies[Any], database: Database) -> None:
        """One transaction for all. A batch with a poisonous event in it is handled again one by one."""
        readable: list[tuple[Msg, ReceivedEvent]] = []
        for delivery in deliveries:
            if (delivery.headers or {}).get(REDRIVE_FOR, self._name) != self._name:
                await self._settle(delivery.ack())
                continue
            if delivery.subject not in policies.subjects:
                await self._hand_back(delivery)
                continue
            try:
                readable.append((delivery, _read(delivery, policies)))
            except (KeyError, DecodeError) as error:
                await self._bury(delivery, f"unreadable: {in_short(error)}")
        if not readable:
            return
        arrivals = [arrival for _, arrival in readable]
        try:
            await _apply_despite_conflicts(arrivals, policies, database)
        except TOO_MUCH_AT_ONCE as error:
            logger.warning("consumer %s: %d events take too long: %r", self._name, len(readable), error)
            if len(readable) == 1:
                await self._try_again(readable[0][0], RETRY_SECONDS)
                return
            half = len(readable) // 2
            for part in (readable[:half], readable[half:]):
                await self._handle([delivery for delivery, _ in part], policies, database)
        except Exception as error:  # noqa: BLE001 - the edge of events: one that can't be handled blocks no other
            if is_poison(error):
                await self._handle_one_by_one(readable, error, policies, database)
                return
            logger.warning("consumer %s: %d events wait: %r", self._name, len(readable), error)
            for delivery, _ in readable:
                # Soon, however often it was tried: all is well again as soon as the database is.
                await self._try_again(delivery, RETRY_SECONDS)
            await asyncio.sleep(RETRY_SECONDS)
        else:
            self._poisoned_in_a_row.clear()
            self.has_handled = True
            for delivery, _ in readable:
                await self._settle(delivery.ack())

    @property
    def is_halted(self) -> bool:
        """Whether the last events could not be handled, one after the other."""
        return len(self._poisoned_in_a_row) >= MAX_POISONED_IN_A_ROW

    async def _hand_back(self, delivery: Msg) -> None:
        """An event that only a newer release knows, which shares this subscription: a replica of it will take it."""
        logger.info("consumer %s: %s is for a newer release", self._name, delivery.subject)
        soon = (delivery.metadata.num_delivered or 1) <= HAND_BACK_SOON
        await self._try_again(delivery, 2 * RETRY_SECONDS if soon else REDELIVERY_SECONDS[-1])

    async def _handle_one_by_one(
        self, readable: list[tuple[Msg, ReceivedEvent]], error: Exception, policies: Policies[Any], database: Database
    ) -> None:
        """Finds the one among many that can't be handled; a single one goes to the dead letters."""
        if len(readable) > 1:
            for delivery, _ in readable:
                await self._handle([delivery], policies, database)
            return
        logger.error("event %s can't be handled", readable[0][1].event_id, exc_info=error)
        self._poisoned_in_a_row.add(readable[0][1].aggregate_id)
        if self.is_halted:  # all of them failing is more likely a fault of this release than of each event
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
            "Nats-Msg-Id": f"{self._name}/{origin.sequence.stream}",
            "x-dead-reason": " ".join(reason.split())[:500],
            "x-dead-consumer": self._name,
            "x-dead-subject": delivery.subject,
            "x-dead-sequence": str(origin.sequence.stream),
        }
        try:
            await self._js.publish(f"dead.{self._name}", delivery.data, stream=DEAD_LETTERS.name, headers=headers)
        except (OSError, TimeoutError, nats.errors.Error) as error:
            logger.warning("dead letter not kept yet: %s", error)
            deliveries = min(origin.num_delivered or 1, len(REDELIVERY_SECONDS))
            await self._try_again(delivery, REDELIVERY_SECONDS[deliveries - 1])
        else:
            logger.error("event %s of %s is a dead letter: %s", origin.sequence.stream, delivery.subject, reason)
            await self._settle(delivery.term())

    async def _settle(self, settlement: Any) -> None:
        """Sends an ack, nak or term. If it is lost the event comes again, and the inbox knows it."""
        try:
            await settlement
        except (OSError, nats.errors.Error) as error:
            logger.warning("consumer %s: an acknowledgement was lost: %s", self._name, error)

    async def _declare_stream(self, wanted: StreamConfig) -> None:
        try:
            current = (await self._js.stream_info(str(wanted.name))).config
        except NotFoundError:
            # Replicas may declare at once: adding the very same stream again is no error.
            current = (await self._js.add_stream(wanted)).config
        _refuse_difference("stream", wanted, current, but={"max_bytes"})  # how large it may be is up to the operator

    async def declare_consumer(self, subjects: Sequence[str]) -> list[str]:
        """Makes the durable consumer, or widens it and brings its operational settings up to date.

        Answers with the subjects that were added to one that was there.

        A newer release may have subscribed to more: that stays, and what only it knows is handed back to it. A
        consumer begins to hear of a subject that is added with what is published from then on.
        """
        wanted = ConsumerConfig(
            durable_name=self._name,
            filter_subjects=list(subjects),
            deliver_policy=DeliverPolicy.ALL,
            ack_policy=AckPolicy.EXPLICIT,
            ack_wait=ACK_WAIT_SECONDS,
            max_ack_pending=MAX_UNACKNOWLEDGED,
            max_deliver=-1,
        )
        stream = str(EVENTS.name)
        try:
            current = (await self._js.consumer_info(stream, self._name)).config
        except NotFoundError:
            current = (await self._js.add_consumer(stream, wanted)).config
        subscribed = set(current.filter_subjects or [current.filter_subject or ""]) - {""}
        _refuse_difference("consumer", wanted, current, but={"filter_subjects", "ack_wait", "max_ack_pending"})
        added = sorted(set(subjects) - subscribed)
        if added or (current.ack_wait, current.max_ack_pending) != (wanted.ack_wait, wanted.max_ack_pending):
            logger.info("consumer %s: brought up to date; new subjects: %s", self._name, added)
            await self._js.add_consumer(stream, wanted.evolve(filter_subjects=sorted({*subscribed, *subjects})))
        return added

    async def _note_closed(self) -> None:
        if not self._closing:
            logger.critical("the connection to NATS was closed for good")
            self.lost.set()

    async def _log_error(self, error: Exception) -> None:
        logger.warning("NATS: %r", error)


class _Pull:
    """Asks the server for events and takes what has arrived: one request stays open, so that nothing waits for one."""

    def __init__(self, client: Client, subject: str, reply: str, arrived: "asyncio.Queue[Msg]") -> None:
        self._client = client
        self._subject = subject
        self._reply = reply
        self._arrived = arrived
        self._open = 0  # how many events the server may still send
        self._lost = ""

    async def next_batch(self, stopping: asyncio.Event) -> list[Msg]:
        """All events that have arrived, after waiting a second for the first one, or until `stopping`.

        Raises ConsumerLost.
        """
        if self._open < BATCH:
            self._open += BATCH
            await self._client.publish(self._subject, PULL, reply=self._reply)
        first, end = asyncio.ensure_future(self._arrived.get()), asyncio.ensure_future(stopping.wait())
        try:
            await asyncio.wait([first, end], timeout=PULL_SECONDS + 0.5, return_when=asyncio.FIRST_COMPLETED)
        finally:
            end.cancel()
            arrived = not first.cancel()  # it is not canceled if it is done
        if not arrived:
            if not stopping.is_set():
                self._open = 0  # the server was away: nobody knows of our request any more
            return []
        messages = [first.result()]
        while len(messages) < BATCH and not self._arrived.empty():
            messages.append(self._arrived.get_nowait())
        deliveries = []
        for message in messages:
            status = (message.headers or {}).get("Status")
            if status is None:
                self._open = max(0, self._open - 1)
                deliveries.append(message)
            elif status in REQUEST_IS_OVER:
                unsent = int((message.headers or {}).get("Nats-Pending-Messages", self._open))
                self._open = max(0, self._open - unsent)
            else:
                self._lost = f"{status} {(message.headers or {}).get('Description', '')}"
        if self._lost and not deliveries:
            raise ConsumerLost(self._lost)
        return deliveries  # first, even if the consumer is lost: what has come is handled


def is_poison(error: Exception) -> bool:
    """Whether an event that failed so can't be handled at all: it fails the same way whenever it is tried again."""
    if isinstance(error, _NEVER_RIGHT):
        return True
    return not isinstance(error, (*TRANSIENT, asyncpg.PostgresError, Conflict))


def _read(delivery: Msg, policies: Policies[Any]) -> ReceivedEvent:
    headers = delivery.headers or {}
    message = policies.parse(delivery.subject, delivery.data)
    # The event's own id, not that of the message: an event that is sent again may travel in another message.
    return ReceivedEvent(headers["ce-id"], headers["ce-subject"], headers.get("traceparent", ""), message)


async def _apply_despite_conflicts(
    arrivals: Sequence[ReceivedEvent], policies: Policies[Any], database: Database
) -> None:
    """A call may have changed one of the aggregates meanwhile: what is stored then is loaded again."""
    async for attempt in until_saved():
        with attempt:
            await _apply(arrivals, policies, database)


async def _apply(arrivals: Sequence[ReceivedEvent], policies: Policies[Any], database: Database) -> None:
    trace.enter_batch({arrival.aggregate_id: arrival.traceparent for arrival in arrivals})
    async with database.transaction() as connection:
        fresh = await inbox.claim(connection, [arrival.event_id for arrival in arrivals])
        # The same event may stand in a batch twice.
        chosen = {arrival.event_id: arrival for arrival in arrivals if arrival.event_id in fresh}
        if chosen:
            await policies.apply(connection, list(chosen.values()))


def _acknowledged(ack: asyncio.Future[Any] | None) -> bool:
    if ack is None or ack.cancelled():
        return False
    if ack.exception() is not None:
        logger.warning("publish: %r", ack.exception())
        return False
    return True


def _refuse_difference(kind: str, wanted: StreamConfig | ConsumerConfig, current: Any, *, but: Set[str]) -> None:
    """A silent difference would be served for ever: pull_subscribe keeps an existing consumer's configuration."""
    for field, value in vars(wanted).items():
        if field not in but and value is not None and getattr(current, field) != value:
            name = getattr(wanted, "name", None) or getattr(wanted, "durable_name", "")
            raise DeclarationDiffers(f"{kind} {name}: {field} is {getattr(current, field)!r}, declared {value!r}")
