"""Periodic jobs of mypage_svc. Every replica runs every job."""

import asyncio
import logging
from collections.abc import Callable
from datetime import datetime, time, timedelta
from zoneinfo import ZoneInfo

from gotohotel import trace
from gotohotel.database import TRANSIENT
from gotohotel.wire import LAST_ID
from mypage_svc.domain import Pages
from mypage_svc.kakao import (
    Accepted,
    Message,
    Misconfigured,
    Provider,
    Refused,
    Result,
    TryLater,
    Undelivered,
    recipient_of,
)
from mypage_svc.store import PostgresMessages

logger = logging.getLogger(__name__)

BATCH, PAGES = 20, 500
UPGRADE_LASTS = timedelta(minutes=30)
TOO_OLD = timedelta(hours=24)  # news that nobody needs any more
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 5.0, 300.0
ALARM_SECONDS = 60.0


class Jobs:
    """Sends the messages about changes of state. `clock` is the database's time.

    During `quiet_hours`, in the property's time zone, nothing is sent.
    """

    def __init__(
        self,
        pages: Pages,
        messages: PostgresMessages,
        provider: Provider,
        *,
        clock: Callable[[], datetime],
        region: str,
        time_zone: ZoneInfo,
        quiet_hours: tuple[time, time] | None = None,
    ) -> None:
        self._pages = pages
        self._messages = messages
        self._provider = provider
        self._clock = clock
        self._region = region
        self._time_zone = time_zone
        self._quiet_hours = quiet_hours
        self._started = clock()

    async def note_missed(self) -> None:
        """Writes the messages of changes that a release without messages has stored: one that runs beside this one
        during an upgrade, or ran after a rollback.
        """
        if self._clock() - self._started > UPGRADE_LASTS:
            return
        before = LAST_ID
        while pages := await self._pages.page(owner=None, before=before, size=PAGES):
            await self._messages.note(pages)
            before = pages[-1].order_id

    async def send_messages(self) -> None:
        """Hands over the messages that are due."""
        while not self._is_quiet() and (batch := await self._messages.claim(limit=BATCH)):
            async with asyncio.TaskGroup() as tasks:
                for message in batch:
                    tasks.create_task(self._send(message))

    async def note_results(self) -> None:
        """Asks what became of the messages that the provider has."""
        while batch := await self._messages.unknown(limit=BATCH):
            async with asyncio.TaskGroup() as tasks:
                for message, accepted in batch:
                    tasks.create_task(self._note_result(message, accepted))

    def _is_quiet(self) -> bool:
        if self._quiet_hours is None:
            return False
        begins, ends = self._quiet_hours
        now = self._clock().astimezone(self._time_zone).time()
        return begins <= now < ends if begins <= ends else now >= begins or now < ends

    async def _send(self, message: Message) -> None:
        trace.about(message.order_id)
        recipient = recipient_of(message.phone_no, self._region)
        try:
            if not recipient:
                await self._messages.end(message, Result("SKIPPED", "NO_MOBILE_NUMBER"))
            elif (accepted := await self._taken_before(message)) is not None:
                await self._messages.accept(message, accepted)
            elif self._clock() - message.occurred_at > TOO_OLD:
                await self._messages.end(message, Result("FAILED", "TOO_OLD"))
            else:
                await self._messages.accept(message, await self._provider.send(message, recipient))
        except Refused as error:
            logger.warning("message %s: refused: %s", message.change, error)
            await self._messages.end(message, Result("FAILED", str(error)))
        except Misconfigured as error:
            logger.critical("no KakaoTalk message can be sent: %s", error)
            await self._messages.postpone(message, seconds=ALARM_SECONDS)
        except TryLater as error:
            logger.warning("message %s: not sent yet: %s", message.change, error)
            await self._messages.postpone(message, seconds=_pause(message.tries))
        except TRANSIENT as error:
            logger.warning("message %s: the database is away: %r", message.change, error)

    async def _taken_before(self, message: Message) -> Accepted | None:
        """What an earlier try came to, if its answer was lost: it is looked up before the message is sent again."""
        return await self._provider.find(message) if message.tries > 1 else None

    async def _note_result(self, message: Message, accepted: Accepted) -> None:
        trace.about(message.order_id)
        try:
            result = await self._provider.result(accepted)
            if result is None and self._clock() - message.occurred_at > 2 * TOO_OLD:
                result = Result("FAILED", "NO_RESULT")
            if result is not None:
                await self._messages.end(message, result)
        except Undelivered as error:
            await self._messages.repeat(message, code=str(error), seconds=_pause(message.attempt))
        except (TryLater, Refused, Misconfigured, *TRANSIENT) as error:
            logger.warning("message %s: its result is not known yet: %r", message.change, error)


def _pause(tries: int) -> float:
    return float(min(FIRST_PAUSE_SECONDS * 2 ** (tries - 1), LONGEST_PAUSE_SECONDS))
