"""The sandbox card processor: moves no money, but keeps a ledger. Magic card numbers decide the outcome."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from gotohotel.database import TRANSIENT, Database, Row, open_database
from gotohotel.domain import Money
from gotohotel.ids import new_id
from gotohotel.schema import migrate
from gotohotel.settings import PoolSize, PostgresUrl, read_settings
from pay_svc.domain import Card, Charge, DeclineReason, ProcessorUnavailable, Refusal

APPROVED = "4242424242424242"  # and any number that is not listed here
REFUSED = {
    "4000000000000002": DeclineReason.CARD_DECLINED,
    "4000000000009995": DeclineReason.INSUFFICIENT_FUNDS,
    "4000000000000069": DeclineReason.EXPIRED_CARD,
}
ANSWERS_WITH_AN_ERROR = "4000000000000119"
ANSWER_IS_LOST = "4000000000000259"

MIGRATIONS = Path(__file__).parent / "migrations"

# The first outcome of a key is final: repeating a charge, or charging a closed key, changes nothing. `kind` is null if
# there was an outcome before.
ENTER = """
WITH entered AS (
    INSERT INTO entries (key, kind, order_id, reason, currency, amount, approval_no)
    VALUES ($1, $2, $3, $4, $5, $6, $7)
    ON CONFLICT DO NOTHING
    RETURNING kind, reason, approval_no
)
SELECT kind, reason, approval_no
FROM (SELECT) AS one
LEFT JOIN entered ON true
"""

TRUTH = """
SELECT kind, reason, approval_no
FROM entries
WHERE key = $1
  AND kind IN ('CHARGE', 'REFUSAL')
"""

# A refund is an entry of its own, so that double refunds can be counted.
REFUND = """
INSERT INTO entries (key, kind, order_id, reason, currency, amount, approval_no)
SELECT key, 'REFUND', order_id, '', currency, amount, approval_no
FROM entries
WHERE key = $1
  AND kind = 'CHARGE'
ON CONFLICT DO NOTHING
"""


class SandboxSettings(BaseSettings):
    """PAY_SANDBOX_… in the environment."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore")

    database_url: PostgresUrl  # its own ledger: another database and another role than pay_svc's
    delay_ms: Annotated[int, Field(ge=0, le=60_000)] = 0  # every charge sleeps a random 0…N ms
    pool_size: PoolSize = 10


@asynccontextmanager
async def open_sandbox() -> AsyncIterator["SandboxProcessor"]:
    """Reads the settings, applies the migrations and opens the ledger."""
    settings = read_settings(SandboxSettings, "PAY_SANDBOX")
    await migrate(settings.database_url, MIGRATIONS)
    async with open_database(settings.database_url, name="sandbox processor", pool_size=settings.pool_size) as ledger:
        yield SandboxProcessor(ledger, delay_ms=settings.delay_ms)


class SandboxProcessor:
    """The Processor port on a ledger in PostgreSQL."""

    closes_unseen_keys = True  # with an entry that blocks any later charge

    def __init__(self, ledger: Database, *, delay_ms: int) -> None:
        self._ledger = ledger
        self._delay_ms = delay_ms

    async def create(self, key: str, *, order_id: str, amount: Money) -> None:
        """Does nothing: the sandbox needs no announcement."""

    async def confirm(self, key: str, *, order_id: str, amount: Money, card: Card) -> Charge | Refusal:
        """Charges once under this key; the card number decides the outcome."""
        if self._delay_ms:
            await asyncio.sleep(random.uniform(0, self._delay_ms) / 1000)  # noqa: S311 - a delay, not a secret
        if card.number == ANSWERS_WITH_AN_ERROR:
            raise ProcessorUnavailable("the processor answers with an error")
        reason = REFUSED.get(card.number)
        outcome = await self._enter(key, order_id, amount, reason=reason)
        if card.number == ANSWER_IS_LOST:
            raise ProcessorUnavailable("the processor's answer is lost")
        return outcome

    async def cancel(self, key: str) -> Charge | Refusal:
        """Returns the outcome of the key; one that was never charged is closed."""
        return await self._enter(key, "", Money.zero("XXX"), reason=DeclineReason.PAYMENT_UNAVAILABLE)

    async def refund(self, key: str) -> None:
        """Refunds the charge; a second refund changes nothing."""
        try:
            await self._ledger.autocommit.execute(REFUND, key)
        except TRANSIENT as error:
            raise ProcessorUnavailable(repr(error)) from error

    async def _enter(self, key: str, order_id: str, amount: Money, *, reason: DeclineReason | None) -> Charge | Refusal:
        kind, approval_no = ("REFUSAL", "") if reason else ("CHARGE", new_id()[-12:].upper())
        entry = (key, kind, order_id, reason or "", amount.currency, amount.amount, approval_no)
        connection = self._ledger.autocommit
        try:
            row = await connection.fetch_one(ENTER, *entry, lock_order=(key,))
            if row["kind"] is None:
                [row] = await connection.fetch(TRUTH, key)
        except TRANSIENT as error:
            raise ProcessorUnavailable(repr(error)) from error
        return _outcome(row)


def _outcome(row: Row) -> Charge | Refusal:
    if row["kind"] == "CHARGE":
        return Charge(approval_no=row["approval_no"])
    return Refusal(reason=DeclineReason(row["reason"]))
