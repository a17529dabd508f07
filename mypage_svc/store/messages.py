"""The messages about changes of state: one row for each, sent by whichever replica takes it first."""

import json
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from gotohotel.database import Connection, Row
from gotohotel.ids import first_id_at
from mypage_svc.domain import MyPage
from mypage_svc.kakao import Accepted, Message, Result

# Changes from before there were messages are not told any more.
NOTE = """
INSERT INTO messages (order_id, change, template, phone_no, variables, occurred_at, status, code)
SELECT
    order_id,
    change,
    template,
    phone_no,
    variables,
    occurred_at,
    CASE WHEN phone_no = '' THEN 'SKIPPED' ELSE 'PENDING' END,
    CASE WHEN phone_no = '' THEN 'NO_PHONE_NUMBER' ELSE '' END
FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::jsonb[], $6::timestamptz[])
    AS note (order_id, change, template, phone_no, variables, occurred_at)
WHERE occurred_at >= (SELECT applied_at FROM schema_migrations WHERE component = 'mypage_svc' AND number = 2)
ORDER BY order_id, change
ON CONFLICT DO NOTHING
"""

# Each message is postponed for longer than sending takes, so that replicas do not send the same one. Of an order only
# the first one is taken: the next one follows when the provider has it. One that the provider has answered with a code
# (its template is refused, or it could not be delivered) holds up no other.
_CLAIM = """
UPDATE messages
SET next_try_at = now() + interval '60 seconds',
    tries = tries + 1
WHERE (order_id, change) IN (
    SELECT message.order_id, message.change
    FROM messages AS message
    LEFT JOIN LATERAL (
        SELECT change
        FROM messages AS earlier
        WHERE earlier.order_id = message.order_id
          AND earlier.status = 'PENDING'
          AND earlier.code = ''
        ORDER BY occurred_at, change
        LIMIT 1
    ) AS first ON true
    WHERE message.status = 'PENDING'
      AND message.next_try_at <= now()
      AND (message.code <> '' OR first.change = message.change)
    ORDER BY message.next_try_at {direction}
    LIMIT $1
    FOR UPDATE OF message SKIP LOCKED
)
RETURNING order_id, change, template, phone_no, variables, occurred_at, attempt, tries
"""
CLAIM_OLDEST = _CLAIM.format(direction="ASC")
CLAIM_NEWEST = _CLAIM.format(direction="DESC")

# Whoever watches the page is told, and the next message of the order is due.
_CHANGED = """
WITH changed AS (
    UPDATE messages
    SET updated_at = now(),
        {changes}
    WHERE order_id = $1
      AND change = $2
      AND attempt = $3
      AND status IN ('PENDING', 'ACCEPTED')
    RETURNING order_id
),
released AS (
    UPDATE messages
    SET next_try_at = now()
    FROM changed
    WHERE messages.order_id = changed.order_id
      AND messages.change <> $2
      AND messages.status = 'PENDING'
      AND messages.code = ''
)
SELECT pg_notify('mypages', order_id::text)
FROM changed
"""
ACCEPT = _CHANGED.format(
    changes="status = 'ACCEPTED', code = '', provider = $4, request_id = $5, recipient_seq = $6, "
    "next_try_at = now() + interval '5 seconds'"
)
END = _CHANGED.format(changes="status = $4, code = $5, channel = $6")
REPEAT = _CHANGED.format(
    changes="status = 'PENDING', code = $4, attempt = attempt + 1, tries = 0, "
    "next_try_at = now() + make_interval(secs => $5)"
)

# The messages that wait for it are postponed too: a claim does not look at them in vain.
POSTPONE = """
UPDATE messages
SET next_try_at = now() + make_interval(secs => $2),
    tries = CASE WHEN change = $3 AND attempt = $4 THEN greatest(tries - $5, 0) ELSE tries END
WHERE order_id = $1
  AND status = 'PENDING'
  AND code = ''
"""

# News that nobody needs any more: messages that were never handed over, and those of which nobody will learn whether
# they were.
END_OLD = """
WITH ended AS (
    UPDATE messages
    SET status = 'FAILED',
        code = CASE WHEN tries = 0 THEN 'TOO_OLD' ELSE 'UNKNOWN' END,
        updated_at = now()
    WHERE (order_id, change) IN (
        SELECT order_id, change
        FROM messages
        WHERE status = 'PENDING'
          AND order_id < $3  -- an id begins with the time of its order, which is before the change
          AND occurred_at < CASE WHEN tries = 0 THEN $1::timestamptz ELSE $2::timestamptz END
        LIMIT 1000
        FOR UPDATE SKIP LOCKED
    )
    RETURNING order_id
)
SELECT pg_notify('mypages', order_id::text)
FROM ended
"""

# The provider refuses the message's template: it waits, and holds up no other.
HOLD = """
UPDATE messages
SET code = $4,
    next_try_at = now() + make_interval(secs => $5)
WHERE order_id = $1
  AND change = $2
  AND attempt = $3
  AND status = 'PENDING'
"""

# Accepted messages whose result is due; each is due again later, at growing intervals. Another provider's messages are
# not asked for, unless it is too late for a result anyway.
UNKNOWN = """
UPDATE messages
SET next_try_at = now() + least(interval '10 minutes', greatest(interval '5 seconds', now() - updated_at))
WHERE (order_id, change) IN (
    SELECT order_id, change
    FROM messages
    WHERE status = 'ACCEPTED'
      AND next_try_at <= now()
      AND (provider = $2 OR occurred_at < now() - interval '48 hours')
    ORDER BY next_try_at
    LIMIT $1
    FOR UPDATE SKIP LOCKED
)
RETURNING order_id, change, template, phone_no, variables, occurred_at, attempt, tries, request_id, recipient_seq
"""


class PostgresMessages:
    """Stores messages."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def note(self, pages: Iterable[MyPage]) -> None:
        """Writes a message for each change of these pages that has none yet."""
        rows = [
            (page.order_id, change.key, change.template, page.booking.get("phone_no", ""), variables, change.time)
            for page in pages
            if page.booking
            for variables in [json.dumps(_variables(page))]
            for change in page.changes
        ]
        if rows:
            await self._connection.execute(NOTE, *(list(column) for column in zip(*rows, strict=True)))

    async def claim(self, *, limit: int, newest: bool = False) -> list[Message]:
        """Messages that are due, for this caller alone; of an order its first one. Those that are due for longest, or
        the `newest`.
        """
        statement = CLAIM_NEWEST if newest else CLAIM_OLDEST
        return [_message(row) for row in await self._connection.fetch(statement, limit)]

    async def accept(self, message: Message, accepted: Accepted, *, provider: str) -> None:
        """This provider has the message."""
        await self._connection.fetch(ACCEPT, *_key(message), provider, accepted.request_id, accepted.recipient_seq)

    async def end(self, message: Message, result: Result) -> None:
        """The message is delivered, or will never be."""
        await self._connection.fetch(END, *_key(message), result.status, result.code, result.channel)

    async def repeat(self, message: Message, *, code: str, seconds: float) -> None:
        """The provider could not deliver the message, and it is worth another attempt."""
        await self._connection.fetch(REPEAT, *_key(message), code, seconds)

    async def postpone(self, message: Message, *, seconds: float, tried: bool = True) -> None:
        """The provider did not say whether it has the message, or (not `tried`) it certainly was not reached now. The
        order's next ones wait too.
        """
        in_vain = 0 if tried else 1
        await self._connection.execute(POSTPONE, message.order_id, seconds, message.change, message.attempt, in_vain)

    async def end_old(self, untried_before: datetime, tried_before: datetime) -> None:
        """Gives up the messages about changes before these times, a thousand at a time."""
        orders_before = first_id_at(untried_before)
        while len(await self._connection.fetch(END_OLD, untried_before, tried_before, orders_before)) == 1000:
            pass

    async def hold(self, message: Message, *, code: str, seconds: float) -> None:
        """The provider refuses the message's template. The order's next messages do not wait for it."""
        await self._connection.execute(HOLD, *_key(message), code, seconds)

    async def unknown(self, *, limit: int, provider: str) -> list[tuple[Message, Accepted]]:
        """Messages that this provider has accepted and whose result is due, for this caller alone."""
        rows = await self._connection.fetch(UNKNOWN, limit, provider)
        return [(_message(row), Accepted(row["request_id"], row["recipient_seq"])) for row in rows]


def _key(message: Message) -> Sequence[object]:
    return message.order_id, message.change, message.attempt


def _variables(page: MyPage) -> dict[str, str]:
    """The values that templates may use."""
    amount = f"{page.amount.amount:,f} {page.amount.currency}" if page.amount else ""
    return {
        "orderId": page.order_id,
        "name": page.booking["name"],
        "roomType": page.booking["room_type"],
        "checkIn": page.booking["check_in"],
        "checkOut": page.booking["check_out"],
        "amount": amount,
        "confirmationNo": page.confirmation_no,
    }


def _message(row: Row) -> Message:
    variables: dict[str, Any] = json.loads(row["variables"])
    occurred_at: datetime = row["occurred_at"]
    return Message(
        order_id=str(row["order_id"]),
        change=row["change"],
        template=row["template"],
        phone_no=row["phone_no"],
        variables=variables,
        occurred_at=occurred_at,
        attempt=row["attempt"],
        tries=row["tries"],
    )
