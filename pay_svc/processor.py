"""The card processor port's adapters. The default is a sandbox with books of its own and magic card numbers."""

import asyncio
import random
from pathlib import Path

from gotohotel.database import TRANSIENT, Database
from gotohotel.domain import Money, new_id
from pay_svc.domain import UNAVAILABLE, Card, Charge, ProcessorUnavailable, Refusal

APPROVED = "4242424242424242"  # as any other number that is not named here
REFUSED = {
    "4000000000000002": "CARD_DECLINED",
    "4000000000009995": "INSUFFICIENT_FUNDS",
    "4000000000000069": "EXPIRED_CARD",
}
ANSWERS_WITH_AN_ERROR = "4000000000000119"
ANSWER_IS_LOST = "4000000000000259"

SANDBOX_MIGRATIONS = Path(__file__).parent / "sandbox" / "migrations"

# A key's first outcome stays: repeating a charge, or charging a key that was closed, changes nothing.
ENTER = """
INSERT INTO entries (key, kind, order_id, reason, currency, amount, approval_no)
VALUES ($1, $2, $3, $4, $5, $6, $7)
ON CONFLICT DO NOTHING
RETURNING kind, reason, approval_no
"""

TRUTH = """
SELECT kind, reason, approval_no
FROM entries
WHERE key = $1
  AND kind IN ('CHARGE', 'REFUSAL')
"""

# An entry of its own, so that it can be counted how often a charge was given back.
REFUND = """
INSERT INTO entries (key, kind, order_id, reason, currency, amount, approval_no)
SELECT key, 'REFUND', order_id, '', currency, amount, approval_no
FROM entries
WHERE key = $1
  AND kind = 'CHARGE'
ON CONFLICT DO NOTHING
"""


class SandboxProcessor:
    """Charges nobody, but keeps books as if: PostgreSQL, in a database of its own."""

    def __init__(self, database: Database, *, delay_ms: int) -> None:
        self._database = database
        self._delay_ms = delay_ms

    async def charge(self, key: str, *, order_id: str, amount: Money, card: Card) -> Charge | Refusal:
        """Charges once under this key; the card's number decides how it goes."""
        if self._delay_ms:
            await asyncio.sleep(random.uniform(0, self._delay_ms) / 1000)  # noqa: S311 - a delay, not a secret
        if card.number == ANSWERS_WITH_AN_ERROR:
            raise ProcessorUnavailable("the processor answers with an error")
        reason = REFUSED.get(card.number, "")
        outcome = await self._enter(key, order_id, amount, reason=reason)
        if card.number == ANSWER_IS_LOST:
            raise ProcessorUnavailable("the processor's answer is lost")
        return outcome

    async def settle(self, key: str) -> Charge | Refusal:
        """The key's truth; a key that was never charged is closed for good."""
        return await self._enter(key, "", Money.zero("XXX"), reason=UNAVAILABLE)

    async def refund(self, key: str) -> None:
        """Gives the charge back; a second time changes nothing."""
        try:
            await self._database.autocommit.execute(REFUND, key)
        except TRANSIENT as error:
            raise ProcessorUnavailable(repr(error)) from error

    async def _enter(self, key: str, order_id: str, amount: Money, *, reason: str) -> Charge | Refusal:
        entry = ("REFUSAL", reason, "") if reason else ("CHARGE", "", new_id()[-12:].upper())
        kind, reason, approval_no = entry
        connection = self._database.autocommit
        try:
            row = await connection.fetchrow(
                ENTER, key, kind, order_id, reason, amount.currency, amount.amount, approval_no
            )
            row = row or await connection.fetchrow(TRUTH, key)
        except TRANSIENT as error:
            raise ProcessorUnavailable(repr(error)) from error
        if row["kind"] == "CHARGE":
            return Charge(approval_no=row["approval_no"])
        return Refusal(reason=row["reason"])
