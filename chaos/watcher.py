"""One who watches a page as a browser does: server-sent events, and a new connection whenever one breaks."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from itertools import pairwise
from typing import Any

import httpx

from chaos.load import HANGS_SECONDS, Caller
from chaos.nemesis import until
from chaos.rig import Rig
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


@asynccontextmanager
async def under_watch(
    rig: Rig, guest: Caller, order_ids: Sequence[str], *, each: int = 1
) -> AsyncIterator[list[Watcher]]:
    """Watches these orders during the block. In the end every watch has the true page, and none went back or repeated
    a page.
    """
    watchers = [Watcher(rig.stack, guest, order_id) for order_id in order_ids for _ in range(each)]
    watching = [asyncio.create_task(watcher.run()) for watcher in watchers]

    async def all_true() -> bool:
        pages = {order_id: (await guest.look(f"/mypages/{order_id}")).answer for order_id in order_ids}
        return all(watcher.pages[-1:] == [pages[watcher.order_id]] for watcher in watchers)

    try:
        yield watchers
        await until(all_true, "a watch does not end with the true page", seconds=60)
    finally:
        for task in watching:
            task.cancel()
        await asyncio.wait(watching)
    for watcher in watchers:
        for before, after in pairwise(watcher.pages):
            rig.demand(before["etag"] != after["etag"], "a watch repeated a page")
            rig.demand(len(before["timeline"]) <= len(after["timeline"]), "a watch went back")
