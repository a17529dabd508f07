"""Asks the server for events, and says what has arrived."""

import asyncio
import json

from nats.aio.client import Client
from nats.aio.msg import Msg

BATCH = 200
# A pull asks for a batch; the server ends it after a second, so that after a restart of the server no wait is long.
PULL_SECONDS = 1.0
PULL = json.dumps({"batch": BATCH, "expires": int(PULL_SECONDS * 1_000_000_000)}).encode()
REQUEST_IS_OVER = ("404", "408")


class ConsumerLost(Exception):
    """The server no longer knows the consumer, or refuses to go on with it."""


class Pull:
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
