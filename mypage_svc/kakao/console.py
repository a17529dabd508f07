"""The default provider: writes messages to the log, with the number masked."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from gotohotel.texts import masked
from mypage_svc.kakao import Accepted, Message, Result

logger = logging.getLogger(__name__)


class ConsoleProvider:
    """The Provider port without a provider. A process that dies after a line and before it is stored repeats it."""

    name = "console"

    async def send(self, message: Message, recipient: str) -> Accepted:
        """Writes the message."""
        logger.info("KakaoTalk to %s: %s", masked(recipient), message.text.replace("\n", " "))
        return Accepted(self.name, 1)  # no key: its digits could look like a card number

    async def find(self, _: Message) -> Accepted | None:
        """Nothing is kept."""
        return None

    async def result(self, _: Accepted) -> Result | None:
        """Written is delivered."""
        return Result("DELIVERED", "0", "KAKAO")


@asynccontextmanager
async def open_console() -> AsyncIterator[ConsoleProvider]:
    """Needs no settings."""
    yield ConsoleProvider()
