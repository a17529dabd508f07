"""Which orders' phone numbers are kept here, and how they are erased."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import date

from gotohotel.database import Connection
from mypage_svc.domain import Fact, Pages

NOTE = """
INSERT INTO numbers (order_id, check_out)
SELECT order_id, coalesce(check_out, current_date)
FROM unnest($1::uuid[], $2::date[]) AS number (order_id, check_out)
ORDER BY order_id
ON CONFLICT DO NOTHING
"""

DUE = """
SELECT order_id
FROM numbers
WHERE check_out < $1
ORDER BY check_out
LIMIT $2
"""

# A message that was not sent yet is not sent any more.
ERASE = """
WITH erased AS (
    UPDATE messages
    SET phone_no = '',
        variables = CASE WHEN $2 THEN variables || '{"name": ""}' ELSE variables END,
        status = CASE WHEN status = 'PENDING' THEN 'SKIPPED' ELSE status END,
        code = CASE WHEN status = 'PENDING' THEN 'ERASED' ELSE code END
    WHERE order_id = ANY($1::uuid[])
)
DELETE FROM numbers
WHERE order_id = ANY($1::uuid[])
"""


def numbers_in(facts: Mapping[str, Iterable[Fact]]) -> dict[str, date | None]:
    """The orders in whose facts there is a phone number, with the end of the stay; None if that is no date."""
    return {
        order_id: _date(fact.booking.get("check_out", ""))
        for order_id, some in facts.items()
        for fact in some
        if fact.booking and fact.booking.get("phone_no")
    }


def _date(text: str) -> date | None:
    try:
        return date.fromisoformat(text)
    except ValueError:
        return None


class PostgresNumbers:
    """Keeps the list, and erases what is on it."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def note(self, facts: Mapping[str, Iterable[Fact]]) -> None:
        """Facts with phone numbers are being stored."""
        if kept := numbers_in(facts):
            await self._connection.execute(NOTE, list(kept), list(kept.values()))

    async def due(self, before: date, *, limit: int) -> list[str]:
        """Orders with a phone number whose stay ended before this date."""
        return [str(row["order_id"]) for row in await self._connection.fetch(DUE, before, limit)]

    async def erase(self, order_ids: Sequence[str], pages: Pages, *, names: bool = False) -> None:
        """Erases the phone numbers of these orders, and the guests' names if `names`. Safe to repeat.

        In one transaction: otherwise a rebuild that ends in between would bring numbers back that are on no list.
        """
        await pages.erase(order_ids, names=names)
        await self._connection.execute(ERASE, order_ids, names)
