"""Which pages have changed, as PostgreSQL tells it to all replicas at once. Both stores announce their changes here."""

import asyncio
from collections.abc import AsyncGenerator, Set

from gotohotel.database import SESSION, connect


class Changes:
    """Follows the changes, through a direct connection of its own: notifications belong to a session."""

    def __init__(self, url: str) -> None:
        self._url = url

    async def follow(self, *, seconds: float) -> AsyncGenerator[Set[str] | None, None]:
        """The orders whose pages have changed, whichever replica changed them, until the connection breaks.

        None at the beginning, and whenever there was no change for this long: then any page may have changed.
        """
        news: asyncio.Queue[str] = asyncio.Queue()
        connection = await connect(self._url, SESSION)
        try:
            await connection.add_listener("mypages", lambda *notice: news.put_nowait(notice[3]))
            connection.add_termination_listener(lambda _: news.put_nowait(""))
            yield None
            while not connection.is_closed():
                try:
                    async with asyncio.timeout(seconds):
                        changed = await news.get()
                except TimeoutError:
                    yield None
                else:
                    yield set(changed.split(","))
        finally:
            await connection.close(timeout=2)
