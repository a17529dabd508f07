"""Reviews in PostgreSQL."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from gotohotel.columns import Column, Columns, Statement
from gotohotel.database import Connection, Row
from gotohotel.outbox import INSERT_OUTBOX, outbox_values
from gotohotel.policies import ReceivedEvent
from review_svc import wire
from review_svc.domain import Review, ReviewChanged, ReviewNotFound

COLUMNS = Columns[Review](
    Column("order_id", "uuid", lambda review: review.order_id),
    Column("owner", "text", lambda review: review.owner),
    Column("confirmed", "boolean", lambda review: review.confirmed),
    Column("text", "text", lambda review: review.text),
    Column("version", "bigint", lambda review: review.version),
    Column("revision", "bigint", lambda review: review.revision),
)

FIND = f"""
SELECT {COLUMNS.listed}
FROM reviews
WHERE order_id = ANY($1::uuid[])
"""

SAVE = Statement(f"""
WITH saved AS (
    INSERT INTO reviews ({COLUMNS.listed})
    SELECT {COLUMNS.listed} FROM unnest({COLUMNS.arrays}) AS change ({COLUMNS.listed}) ORDER BY order_id
    ON CONFLICT (order_id) DO UPDATE
    SET owner = excluded.owner,
        confirmed = excluded.confirmed,
        text = excluded.text,
        version = excluded.version,
        revision = reviews.revision + 1
    WHERE reviews.revision = excluded.revision
    RETURNING order_id
),
announced AS (
    {INSERT_OUTBOX}
)
SELECT count(*) FROM saved
""")


class PostgresReviews:
    """The Reviews port, on a transaction."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def find(self, order_ids: Sequence[str]) -> dict[str, Review]:
        """The stored reviews of these orders."""
        rows = await self._connection.fetch(FIND, order_ids)
        return {str(row["order_id"]): _review(row) for row in rows}

    async def get(self, order_id: str, *, owner: str | None) -> Review:
        """A confirmed order's review. Raises ReviewNotFound if it is missing or has another owner (None: any)."""
        review = (await self.find([order_id])).get(order_id)
        if review is None or not review.confirmed or owner not in (None, review.owner):
            raise ReviewNotFound()
        return review

    async def save(self, *reviews: Review) -> None:
        """Saves new and changed reviews and stores their events. Raises ReviewChanged."""
        if reviews:
            events = outbox_values(row for review in reviews for row in wire.outbox_rows(review))
            saved = await self._connection.fetchval(*SAVE.bind({**COLUMNS.columns(reviews), **events}))
            if saved != len(reviews):
                raise ReviewChanged()


@dataclass
class UnitOfWork:
    """The reviews of a batch of events, created where there are none."""

    reviews: dict[str, Review]

    def review(self, order_id: str) -> Review:
        """The order's review; a new, empty one if nothing is stored for the order yet."""
        return self.reviews.setdefault(order_id, Review(order_id))


@asynccontextmanager
async def open_work(connection: Connection, events: Sequence[ReceivedEvent]) -> AsyncIterator[UnitOfWork]:
    """Loads the reviews that the events are about, and saves those that changed."""
    store = PostgresReviews(connection)
    work = UnitOfWork(await store.find(sorted({event.aggregate_id for event in events})))
    before = {order_id: COLUMNS.values(review) for order_id, review in work.reviews.items()}
    yield work
    await store.save(*(each for each in work.reviews.values() if COLUMNS.values(each) != before.get(each.order_id)))


def _review(row: Row) -> Review:
    return Review(
        str(row["order_id"]),
        owner=row["owner"],
        confirmed=row["confirmed"],
        text=row["text"],
        version=row["version"],
        revision=row["revision"],
    )
