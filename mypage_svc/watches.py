"""Tells those who watch a page when it has changed."""

import asyncio
import logging
from collections import defaultdict
from collections.abc import AsyncIterator, Collection, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager

from gotohotel.database import TRANSIENT
from mypage_svc.domain import MyPage, Pages
from mypage_svc.store import Changes

logger = logging.getLogger(__name__)

READ_AGAIN_SECONDS = 15.0  # in case that the news of a change was lost
RETRY_SECONDS = 0.5


class Watch:
    """One who watches a page. Keeps the newest page only, however slowly it is taken."""

    def __init__(self) -> None:
        self._news = asyncio.Event()
        self._page: MyPage | None = None

    def tell(self, page: MyPage) -> None:
        """Replaces the page that was not taken yet."""
        self._page = page
        self._news.set()

    async def next(self, *, seconds: float) -> MyPage | None:
        """The newest page when there is news of it; None after this time."""
        try:
            async with asyncio.timeout(seconds):
                await self._news.wait()
        except TimeoutError:
            return None
        self._news.clear()
        return self._page


class Watches:
    """All watches of this process. The pages that a change concerns are read once for all of them."""

    def __init__(self, pages: Pages, changes: Changes) -> None:
        self._pages = pages
        self._changes = changes
        self._watching: defaultdict[str, set[Watch]] = defaultdict(set)

    @contextmanager
    def open(self, order_id: str) -> Iterator[Watch]:
        """Watches a page until the end of the block."""
        watch = Watch()
        self._watching[order_id].add(watch)
        try:
            yield watch
        finally:
            self._watching[order_id].discard(watch)
            if not self._watching[order_id]:
                del self._watching[order_id]

    async def follow(self) -> None:
        """Follows the changes of all pages, for ever."""
        while True:
            try:
                async with aclosing(self._changes.follow(seconds=READ_AGAIN_SECONDS)) as changes:
                    async for changed in changes:
                        await self._tell(self._watching.keys() if changed is None else changed & self._watching.keys())
            except TRANSIENT as error:
                logger.warning("watches: the pages can't be read: %r", error)
            except Exception:  # Outermost handler of a loop: the streams go on, and it begins again.
                logger.exception("watches: the changes can't be followed")
            await asyncio.sleep(RETRY_SECONDS)

    async def _tell(self, order_ids: Collection[str]) -> None:
        if not order_ids:
            return
        for page in await self._pages.find(list(order_ids)):
            for watch in self._watching.get(page.order_id, ()):
                watch.tell(page)


@asynccontextmanager
async def open_watches(pages: Pages, changes: Changes) -> AsyncIterator[Watches]:
    """Follows changes until the end of the block."""
    watches = Watches(pages, changes)
    following = asyncio.create_task(watches.follow())
    try:
        yield watches
    finally:
        following.cancel()
        await asyncio.wait([following])
