"""One who watches a page as a browser does: server-sent events, and a new connection whenever one breaks."""

import asyncio
import json
from contextlib import suppress
from typing import Any

import httpx

from chaos.load import HANGS_SECONDS, Caller
from ops.stack import Stack

RECONNECT_SECONDS = 0.3  # a browser takes longer


class Watcher:
    """Keeps every page that it was sent, and how often it had to connect."""

    def __init__(self, stack: Stack, guest: Caller, order_id: str) -> None:
        self.order_id = order_id
        self.pages: list[dict[str, Any]] = []
        self.connections = 0
        self._url = f"{stack.gateway_url}/mypages/{order_id}:watch"
        self._token = guest.token
        self._last_id = ""

    async def run(self) -> None:
        """Watches until it is cancelled."""
        while True:
            self.connections += 1
            with suppress(httpx.HTTPError, ValueError):  # the connection broke, perhaps in the middle of an event
                await self._watch()
            await asyncio.sleep(RECONNECT_SECONDS)

    async def _watch(self) -> None:
        headers = {"Authorization": f"Bearer {self._token}", "Last-Event-ID": self._last_id}
        async with (
            httpx.AsyncClient(verify=False, timeout=2 * HANGS_SECONDS) as client,  # noqa: S501 - as in Caller
            client.stream("GET", self._url, headers=headers) as answer,
        ):
            event: dict[str, str] = {}
            async for line in answer.aiter_lines():
                name, _, value = line.partition(": ")
                event[name] = value
                if not line:
                    if event.get("id"):
                        self.pages.append(json.loads(event["data"]))
                        self._last_id = event["id"]
                    event = {}
