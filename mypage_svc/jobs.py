"""Periodic jobs of mypage_svc. Every replica runs every job."""

import asyncio
import logging
from collections.abc import Callable
from datetime import date, datetime, time, timedelta
from zoneinfo import ZoneInfo

from gotohotel import trace
from gotohotel.database import TRANSIENT, Connection, Database
from gotohotel.wire import LAST_ID
from mypage_svc.domain import Pages
from mypage_svc.kakao import (
    Accepted,
    Message,
    Misconfigured,
    Provider,
    Refused,
    Result,
    TemplateRefused,
    TryLater,
    Undelivered,
    Unreachable,
    recipient_of,
)
from mypage_svc.store import PostgresMessages, PostgresNumbers

logger = logging.getLogger(__name__)

BATCH, PAGES, ERASED_AT_ONCE = 20, 500, 100
UPGRADE_LASTS = timedelta(days=1)
CLAIM_HOLDS = timedelta(seconds=45)  # shorter than the claim itself (CLAIM in store/messages.py)
TOO_OLD = timedelta(hours=24)  # news that nobody needs any more
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 5.0, 300.0
ALARM_SECONDS = 60.0
MAX_AWAY_SECONDS = 15.0


class Jobs:
    """Sends the messages about changes of state. `clock` is the database's time.

    During `quiet_hours`, in the property's time zone, nothing is sent. Of stays that ended before `numbers_end()` no
    phone number is kept.
    """

    def __init__(
        self,
        database: Database,
        pages_on: Callable[[Connection], Pages],
        provider: Provider,
        *,
        clock: Callable[[], datetime],
        region: str,
        time_zone: ZoneInfo,
        numbers_end: Callable[[], date],
        quiet_hours: tuple[time, time] | None = None,
    ) -> None:
        self._database = database
        self._pages_on = pages_on
        self._pages = pages_on(database.autocommit)
        self._messages = PostgresMessages(database.autocommit)
        self._numbers = PostgresNumbers(database.autocommit)
        self._provider = provider
        self._clock = clock
        self._region = region
        self._time_zone = time_zone
        self._quiet_hours = quiet_hours
        self._numbers_end = numbers_end
        self._started = clock()
        self._takes_newest = False
        self._times_away = 0  # how often the provider could not be reached, one time after the other
        self._away_until = self._started

    async def note_missed(self) -> None:
        """Writes the messages of changes, and the list of numbers, that an earlier release has not written: one that
        runs beside this one during an upgrade, or ran after a rollback.
        """
        if self._clock() - self._started > UPGRADE_LASTS:
            return
        before = LAST_ID
        while pages := await self._pages.page(owner=None, before=before, size=PAGES):
            await self._messages.note(pages)
            await self._numbers.note({page.order_id: page.facts for page in pages})
            before = pages[-1].order_id

    async def send_messages(self) -> None:
        """Hands over the messages that are due. While the provider can't be reached at all, only a few of them try.

        The oldest and the newest take turns: after an outage, news of today does not wait behind all that is late.
        """
        while not self._is_quiet() and self._clock() >= self._away_until:
            self._takes_newest = not self._takes_newest
            batch = await self._messages.claim(limit=BATCH, newest=self._takes_newest)
            if not batch:
                return
            claimed_at = self._clock()
            found = await asyncio.gather(
                *(self._send(message, claimed_at) for message in batch), return_exceptions=True
            )
            for error in found:
                if isinstance(error, BaseException):
                    logger.warning("what became of a message could not be stored: %r", error)
            if True in found:
                self._times_away = 0
            elif False in found:
                self._times_away += 1
                pause = min(2 ** min(self._times_away - 1, 10), MAX_AWAY_SECONDS)
                self._away_until = self._clock() + timedelta(seconds=pause)

    async def end_old(self) -> None:
        """Gives up messages that nobody needs any more, however long the provider is away."""
        now = self._clock()
        await self._messages.end_old(now - TOO_OLD, now - 2 * TOO_OLD)

    async def note_results(self) -> None:
        """Asks what became of the messages that the provider has."""
        while batch := await self._messages.unknown(limit=BATCH, provider=self._provider.name):
            async with asyncio.TaskGroup() as tasks:
                for message, accepted in batch:
                    tasks.create_task(self._note_result(message, accepted))

    async def erase_numbers(self) -> None:
        """Erases the phone numbers of stays that ended some time ago, in pages and messages."""
        while order_ids := await self._numbers.due(self._numbers_end(), limit=ERASED_AT_ONCE):
            async with self._database.transaction() as connection:
                await PostgresNumbers(connection).erase(order_ids, self._pages_on(connection))

    def _is_quiet(self) -> bool:
        if self._quiet_hours is None:
            return False
        begins, ends = self._quiet_hours
        now = self._clock().astimezone(self._time_zone).time()
        return begins <= now < ends if begins <= ends else now >= begins or now < ends

    async def _send(self, message: Message, claimed_at: datetime) -> bool | None:
        """Returns whether the provider could be reached; None if it was not asked."""
        trace.about(message.order_id)
        recipient = recipient_of(message.phone_no, self._region)
        try:
            if not recipient:
                await self._messages.end(message, Result("SKIPPED", "NO_MOBILE_NUMBER"))
            elif (accepted := await self._taken_before(message)) is not None:
                await self._accept(message, accepted)
            elif self._age(message) > TOO_OLD:
                await self._messages.end(message, Result("FAILED", "TOO_OLD"))
            elif self._clock() - claimed_at < CLAIM_HOLDS:  # a process that was frozen may no longer send it
                await self._accept(message, await self._provider.send(message, recipient))
        except Refused as error:
            logger.warning("message %s: refused: %s", message.change, error)
            await self._messages.end(message, Result("FAILED", str(error)))
        except TemplateRefused as error:
            logger.critical("the template %s is refused: %s", message.template, error)
            await self._messages.hold(message, code=str(error), seconds=ALARM_SECONDS)
        except Misconfigured as error:
            logger.critical("no KakaoTalk message can be sent: %s", error)
            await self._postpone(message, ALARM_SECONDS)
        except Unreachable as error:
            logger.warning("message %s: the provider can't be reached: %s", message.change, error)
            await self._messages.postpone(message, seconds=FIRST_PAUSE_SECONDS, tried=False)
            return False
        except TryLater as error:
            logger.warning("message %s: not sent yet: %s", message.change, error)
            await self._postpone(message, _pause(message.tries))
        except TRANSIENT as error:
            logger.warning("message %s: the database is away: %r", message.change, error)
            return None
        except Exception:  # Outermost handler of a message: a failure must not end the sending of others.
            logger.exception("message %s can't be sent, and is tried again", message.change)
        return True if recipient and (message.tries > 1 or self._age(message) <= TOO_OLD) else None

    async def _taken_before(self, message: Message) -> Accepted | None:
        """What an earlier try came to, if its answer was lost: it is looked up before the message is sent again."""
        return await self._provider.find(message) if message.tries > 1 else None

    async def _accept(self, message: Message, accepted: Accepted) -> None:
        await self._messages.accept(message, accepted, provider=self._provider.name)

    async def _postpone(self, message: Message, seconds: float) -> None:
        """Tries again later; after two days nobody will know any more whether the provider has it."""
        if self._age(message) > 2 * TOO_OLD:
            await self._messages.end(message, Result("FAILED", "UNKNOWN"))
        else:
            await self._messages.postpone(message, seconds=seconds)

    async def _note_result(self, message: Message, accepted: Accepted) -> None:
        trace.about(message.order_id)
        try:
            result = await self._provider.result(accepted)
        except Undelivered as error:
            await self._messages.repeat(message, code=str(error), seconds=_pause(message.attempt))
            return
        except Exception as error:  # noqa: BLE001 - asked again; a failure must not end the questions about others
            logger.warning("message %s: its result is not known yet: %r", message.change, error)
            result = None
        if result is None and self._age(message) > 2 * TOO_OLD:
            result = Result("FAILED", "NO_RESULT")
        if result is not None:
            await self._messages.end(message, result)

    def _age(self, message: Message) -> timedelta:
        return self._clock() - message.occurred_at


def _pause(tries: int) -> float:
    return float(min(FIRST_PAUSE_SECONDS * 2 ** min(tries - 1, 10), LONGEST_PAUSE_SECONDS))
