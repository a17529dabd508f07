"""A service's connection to NATS, and publishing over it."""

import asyncio
import logging
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import nats
import nats.errors
from nats.aio.client import Client
from nats.js import JetStreamContext

from gotohotel.bus.streams import DEAD_LETTERS, EVENTS, declare_stream

logger = logging.getLogger(__name__)

START_SECONDS = 5.0  # a service that has just started waits this long for its first connection
PUBLISH_SECONDS = 2.0  # without an acknowledgement for this long, an event counts as not published
PUBLISHED_AT_ONCE = 50  # events; about a millisecond of the event loop's time
NEARLY_FULL = 0.8


class Bus:
    """A service's connection to NATS. It may be lost and restored while the service runs."""

    def __init__(self, url: str, *, name: str) -> None:
        self._url = url
        self.name = name
        self._closing = False
        self._made_at = time.monotonic()
        self._has_connected = asyncio.Event()
        self.last_acknowledged = time.monotonic()  # when the stream last acknowledged a publish
        self.lost = asyncio.Event()  # set when the client has given up for good: the process has to end
        self.client = Client()
        self.js: JetStreamContext = self.client.jetstream(timeout=PUBLISH_SECONDS)

    @property
    def is_connected(self) -> bool:
        """Whether the server is reachable now."""
        return bool(self.client.is_connected)

    async def connected(self) -> JetStreamContext:
        """The JetStream context; soon after the start it may take a moment.

        Raises ConnectionError if the server is not reachable.
        """
        if not self._has_connected.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(self._made_at + START_SECONDS - time.monotonic()):
                    await self._has_connected.wait()
        if not self.is_connected:
            raise ConnectionError("NATS is not connected")
        return self.js

    async def connect(self, stopping: asyncio.Event) -> None:
        """Connects and declares the streams, however long it takes, or until `stopping` is set.

        The client repairs later interruptions by itself.
        """
        while not self.client.is_connected:
            if stopping.is_set():
                return
            if not self.client.is_reconnecting:
                await self._try_to_connect()
            if not self.client.is_connected:
                with suppress(TimeoutError):
                    async with asyncio.timeout(0.5):
                        await stopping.wait()
        for stream in (EVENTS, DEAD_LETTERS):
            await declare_stream(self.js, stream)

    async def _try_to_connect(self) -> None:
        try:
            self.client = await nats.connect(
                self._url,
                name=self.name,
                inbox_prefix=f"_INBOX.{self.name}",  # no other user may subscribe to this service's replies
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
            self.js = self.client.jetstream(timeout=PUBLISH_SECONDS)
            self._has_connected.set()

    async def watch_the_stream(self) -> None:
        """Logs a warning when the stream is nearly full: a full stream takes no more events."""
        if not self.client.is_connected:
            return  # not visible at the moment
        try:
            stream = await self.js.stream_info(str(EVENTS.name))
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
        """Flushes pending messages and disconnects."""
        self._closing = True
        with suppress(OSError, TimeoutError, nats.errors.Error):
            if self.client.is_connected:
                await self.client.flush(timeout=2)
            if self.client.is_connected or self.client.is_reconnecting:  # a client that never connected can't be closed
                await self.client.close()

    async def publish_all(self, messages: Sequence[tuple[str, bytes, dict[str, str]]]) -> list[bool]:
        """Publishes (subject, payload, headers) in parallel. Returns for each whether the stream acknowledged it."""
        acks: list[asyncio.Future[Any] | None] = []
        try:
            # For when too many of the client's publishes are pending. With a limit of its own for each message, the
            # client would make a task for each.
            async with asyncio.timeout(PUBLISH_SECONDS):
                for number, (subject, payload, headers) in enumerate(messages, start=1):
                    if number % PUBLISHED_AT_ONCE == 0:
                        await asyncio.sleep(0)  # lets calls run: publishing does not wait for anything
                    if self._is_too_large(subject, payload, headers):
                        logger.error("publish: an event of %s is larger than NATS takes; it waits", subject)
                        acks.append(None)  # the events of other aggregates are published all the same
                    else:
                        acks.append(await self.js.publish_async(subject, payload, stream=EVENTS.name, headers=headers))
        except (OSError, TimeoutError, nats.errors.Error) as error:
            logger.warning("publish: %r", error)
            # The rest of the batch waits, too: each publish that fails keeps a slot among the client's pending ones.
            acks += [None] * (len(messages) - len(acks))
        pending = [ack for ack in acks if ack is not None]
        if pending:
            answered, unanswered = await asyncio.wait(pending, timeout=PUBLISH_SECONDS)
            if answered:
                self.last_acknowledged = time.monotonic()
            for ack in unanswered:
                ack.cancel()  # frees its slot among the client's pending publishes
        return [_acknowledged(ack) for ack in acks]

    def _is_too_large(self, subject: str, payload: bytes, headers: dict[str, str]) -> bool:
        """Whether the server would refuse a message.

        The client itself would notice only after taking a pending slot for it.
        """
        written = sum(len(name) + len(value) + 4 for name, value in headers.items())
        return len(subject) + written + len(payload) + 64 > self.client.max_payload

    async def _note_closed(self) -> None:
        if not self._closing:
            logger.critical("the connection to NATS was closed for good")
            self.lost.set()

    async def _log_error(self, error: Exception) -> None:
        logger.warning("NATS: %r", error)


def _acknowledged(ack: asyncio.Future[Any] | None) -> bool:
    if ack is None or ack.cancelled():
        return False
    if ack.exception() is not None:
        logger.warning("publish: %r", ack.exception())
        return False
    return True
