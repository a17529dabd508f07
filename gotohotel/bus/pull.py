"""Requests events from the server and returns those that have arrived."""

import asyncio
import json

from nats.aio.client import Client
from nats.aio.msg import Msg

BATCH = 200
# A pull request asks for a batch and expires after a second, so that a restart of the server is never waited for long.
PULL_SECONDS = 1.0
PULL = json.dumps({"batch": BATCH, "expires": int(PULL_SECONDS * 1_000_000_000)}).encode()
REQUEST_IS_OVER = ("404", "408")


class ConsumerLost(Exception):
    """The server no longer knows the consumer, or refuses to continue with it."""


class Pull:
    """Requests events and takes those that have arrived.

    One request is always open, so that no event waits for a request.
    """

    def __init__(self, client: Client, subject: str, reply: str, arrived: "asyncio.Queue[Msg]") -> None:
        self._client = client
        self._subject = subject
        self._reply = reply
        self._arrived = arrived
        self._open = 0  # how many events the server may still send
        self._lost = ""

    async def next_batch(self, stopping: asyncio.Event) -> list[Msg]:
        """Returns all events that have arrived, after waiting up to a second for the first one, or until `stopping`.

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
            arrived = not first.cancel()  # no effect if it is done
        if not arrived:
            if not stopping.is_set():
                self._open = 0  # the server was away: it no longer knows our request
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
        return deliveries  # first, even if the consumer is lost: events that have arrived are handled
