"""A thousand open watches: what they cost, and how long a change takes to reach them."""

import asyncio
import json
from datetime import UTC, datetime

import httpx

from bench import load
from ops.stack import Stack

GUESTS, WATCHES_OF_ONE = 50, 20  # as many as one caller may have
OPEN_SECONDS = 30


class Watching:
    """Guests who watch a booking of theirs each, over plain sockets, and pay it one after the other."""

    def __init__(self, stack: Stack, room_type: str) -> None:
        self._stack = stack
        self._room_type = room_type
        self._tokens = [stack.token(subject=f"watch-{number}", role="guest") for number in range(GUESTS)]
        self._orders: list[str] = []
        self._readers: list[asyncio.Task[None]] = []
        self._http = httpx.AsyncClient(base_url=stack.gateway_url, timeout=10)
        self._opened, self._paid = asyncio.Semaphore(0), asyncio.Semaphore(0)
        self.delays: list[float] = []  # seconds from an event to its arrival, at each watch

    async def open(self) -> None:
        """Places the bookings, and returns when every watch has its first page."""
        for token in self._tokens:
            body = {"name": "Watch", "roomType": self._room_type}
            self._orders.append((await self._post(token, "/orders", body))["id"])
        for token, order in zip(self._tokens, self._orders, strict=True):
            for _ in range(WATCHES_OF_ONE):
                self._readers.append(asyncio.create_task(self._watch(token, order)))
        async with asyncio.timeout(OPEN_SECONDS):
            for _ in self._readers:
                await self._opened.acquire()

    async def pay(self, seconds: float) -> None:
        """Pays the bookings, spread over this time; returns when every watch has seen it."""
        for token, order in zip(self._tokens, self._orders, strict=True):
            await self._post(token, f"/orders/{order}:pay", {"cardNo": load.CARD})
            await asyncio.sleep(seconds / GUESTS)
        async with asyncio.timeout(OPEN_SECONDS):
            for _ in self._readers:
                await self._paid.acquire()

    async def close(self) -> None:
        """Ends the watches."""
        for reader in self._readers:
            reader.cancel()
        await asyncio.wait(self._readers)
        await self._http.aclose()

    async def _post(self, token: str, path: str, body: dict[str, str]) -> dict[str, str]:
        answer = await self._http.post(path, json=body, headers={"Authorization": f"Bearer {token}"})
        parsed: dict[str, str] = answer.raise_for_status().json()
        return parsed

    async def _watch(self, token: str, order: str) -> None:
        port = self._stack.ports["gateway"]
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
        head = f"GET /mypages/{order}:watch HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAuthorization: Bearer {token}\r\n\r\n"
        writer.write(head.encode())
        try:
            while not (await reader.readuntil(b"\n")).startswith(b"data: {"):
                pass
            self._opened.release()
            while b'"PaymentApproved"' not in (line := await reader.readuntil(b"\n")):
                pass
            arrived = datetime.now(tz=UTC)
            [paid] = [each for each in json.loads(line[6:])["timeline"] if each["event"] == "PaymentApproved"]
            self.delays.append((arrived - datetime.fromisoformat(paid["time"])).total_seconds())
            self._paid.release()
            while await reader.readline():
                pass
        finally:
            writer.close()
