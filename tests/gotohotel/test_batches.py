"""Concurrent calls of one statement share transactions on real PostgreSQL, and none of them notices the others.

Long because each way to fail is tried for the call that goes first, for those that wait, and in a batch.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import suppress

import asyncpg
import pytest

from gotohotel.batches import MAX_CALLS
from gotohotel.database import TRANSIENT, Database, Row, open_database
from tests.conftest import within

ADD = """
INSERT INTO rooms (id, beds)
VALUES ($1, $2)
RETURNING id, txid_current() AS transaction, pg_backend_pid() AS pid
"""
CHANGE = "UPDATE rooms SET beds = beds + 1 WHERE id = $1 RETURNING id, txid_current() AS transaction"
ADD_SLOWLY = "INSERT INTO rooms SELECT $1, 2 FROM pg_sleep(CASE WHEN $1 = 4 THEN 1 ELSE 0 END) RETURNING id"
SLOWLY = "INSERT INTO rooms SELECT $1, 2 FROM pg_sleep(0.5) RETURNING id"
ADD_LATER = "INSERT INTO rooms SELECT $1, 2 FROM pg_sleep($2) RETURNING id"
ASLEEP = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = current_database()"
TERMINATE_SLEEPING = """
SELECT pg_terminate_backend(pid)
FROM pg_stat_activity
WHERE wait_event = 'PgSleep'
  AND datname = current_database()
"""
SLEEP = "SELECT $1::integer AS id, pg_sleep($2) AS slept"


@pytest.fixture
async def database(scratch_url: str) -> AsyncIterator[Database]:
    """A table of rooms. `number` is the order in which they were inserted."""
    async with open_database(scratch_url, name="test", pool_size=20) as opened:
        await opened.autocommit.execute(
            "CREATE TABLE rooms (id integer PRIMARY KEY, beds integer CHECK (beds > 0), number serial)"
        )
        yield opened


async def add(database: Database, room: int, beds: object = 2) -> Row:
    """Inserts a room; rooms are locked by descending number."""
    return await database.autocommit.fetch_one(ADD, room, beds, lock_order=(-room,))


async def share_one(database: Database) -> None:
    """After calls that shared a transaction, the first ones of another statement share one, too."""
    await asyncio.gather(*(database.autocommit.fetch_one(SLEEP, number, 0, lock_order=()) for number in range(3)))


async def count(database: Database) -> int:
    """How many rooms there are."""
    return int(await database.autocommit.fetchval("SELECT count(*) FROM rooms"))


async def test_concurrent_calls_share_transactions_and_get_their_own_rows(database: Database) -> None:
    """Two hundred calls take few transactions, none of them of more than MAX_CALLS calls."""
    rows = await asyncio.gather(*(add(database, room) for room in range(200)))

    assert [row["id"] for row in rows] == list(range(200))
    sizes = Counter(row["transaction"] for row in rows)
    assert len(sizes) < 40
    assert max(sizes.values()) <= MAX_CALLS
    assert await count(database) == 200


async def test_a_batch_locks_its_rows_in_one_order(database: Database) -> None:
    """Whatever the order of the calls: then batches of several replicas do not deadlock."""
    await share_one(database)
    rows = await asyncio.gather(*(add(database, room) for room in (3, 1, 4, 15, 9, 2, 6)))

    assert len({row["transaction"] for row in rows}) == 1
    inserted = await database.autocommit.fetch("SELECT id FROM rooms ORDER BY number")
    assert [row["id"] for row in inserted] == [15, 9, 6, 4, 3, 2, 1]


@pytest.mark.parametrize(
    ("beds", "error"),
    [(0, asyncpg.CheckViolationError), ("two", asyncpg.DataError), (2**40, asyncpg.DataError)],
    ids=["refused by the table", "of another type", "too large"],
)
async def test_a_call_that_fails_fails_alone(database: Database, beds: object, error: type[Exception]) -> None:
    """The calls beside it succeed, once each."""
    calls = [add(database, room, beds if room == 3 else 2) for room in range(10)]
    rows = await asyncio.gather(*calls, return_exceptions=True)

    assert isinstance(rows[3], error)
    assert [row["id"] for row in rows if not isinstance(row, BaseException)] == [0, 1, 2, 4, 5, 6, 7, 8, 9]
    assert await count(database) == 9


async def test_two_calls_for_the_same_row_get_one_success(database: Database) -> None:
    """The second one gets the error that it would get alone."""
    rows = await asyncio.gather(*(add(database, room // 2) for room in range(10)), return_exceptions=True)

    assert sum(isinstance(row, asyncpg.UniqueViolationError) for row in rows) == 5
    assert await count(database) == 5


async def test_a_call_that_waits_for_a_lock_delays_nobody(database: Database) -> None:
    """The calls in its batch, and later ones, get their rows while it is still waiting."""
    await asyncio.gather(*(add(database, room) for room in range(5)))

    async def change(room: int) -> Row:
        return await database.autocommit.fetch_one(CHANGE, room, lock_order=(room,))

    async with database.transaction() as elsewhere:
        await elsewhere.execute("UPDATE rooms SET beds = 3 WHERE id = 0")
        waiting, *others = [asyncio.create_task(change(room)) for room in range(5)]
        assert [row["id"] for row in await asyncio.gather(*others)] == [1, 2, 3, 4]
        assert (await change(4))["id"] == 4
        assert not waiting.done()

    assert (await waiting)["id"] == 0
    assert await database.autocommit.fetchval("SELECT beds FROM rooms WHERE id = 0") == 4


async def test_a_caller_that_has_gone_takes_no_row_from_the_others(database: Database) -> None:
    """A call that was not sent yet is not run at all."""
    first = asyncio.create_task(add(database, 100))
    await asyncio.sleep(0)  # it is under way: the others wait
    calls = [asyncio.create_task(add(database, room)) for room in range(6)]
    await asyncio.sleep(0)
    calls[2].cancel()
    rows = await asyncio.gather(first, *calls, return_exceptions=True)

    assert isinstance(rows[3], asyncio.CancelledError)
    assert [row["id"] for row in rows if not isinstance(row, BaseException)] == [100, 0, 1, 3, 4, 5]
    assert await count(database) == 6


async def test_a_call_that_goes_first_and_ends_early_takes_nobody_with_it(database: Database) -> None:
    """The server stops working on its statement, those that wait for it go on, and other connections stay."""
    kept = asyncio.create_task(database.autocommit.fetch_one(SLEEP, 1, 0.2, lock_order=()))
    first, *others = [
        asyncio.create_task(database.autocommit.fetch_one(ADD_LATER, room, seconds, lock_order=(room,)))
        for room, seconds in ((100, 1.1), (1, 0), (2, 0))
    ]
    await kept  # its connection is idle now
    idle = await database.autocommit.fetchval("SELECT pid FROM pg_stat_activity WHERE query = $1", SLEEP)
    async with within(10):
        while not await database.autocommit.fetchval(ASLEEP):  # noqa: ASYNC110 - the server changes
            await asyncio.sleep(0.01)

    first.cancel()

    with pytest.raises(asyncio.CancelledError):
        await first
    assert [row["id"] for row in await asyncio.gather(*others)] == [1, 2]
    assert await count(database) == 2
    assert await database.autocommit.fetchval("SELECT count(*) FROM pg_stat_activity WHERE pid = $1", idle) == 1


async def test_a_call_that_goes_first_and_fails_takes_nobody_with_it(database: Database) -> None:
    """Those that wait for it go on."""
    first, *others = await asyncio.gather(
        *(add(database, room, beds=room) for room in range(3)), return_exceptions=True
    )

    assert isinstance(first, asyncpg.CheckViolationError)
    assert [row["id"] for row in others if not isinstance(row, BaseException)] == [1, 2]
    assert await count(database) == 2


async def test_a_statement_that_returns_no_row_gives_nobody_a_strangers_row(database: Database) -> None:
    """Such a statement does not belong here; its calls end with an error."""
    await add(database, 1)
    with pytest.raises(TypeError, match="exactly one row"):
        await database.autocommit.fetch_one(CHANGE, 2, lock_order=(2,))
    await share_one(database)
    calls = [database.autocommit.fetch_one(CHANGE, room, lock_order=(room,)) for room in (1, 2)]
    rows = await asyncio.gather(*calls, return_exceptions=True)

    assert all(isinstance(row, BaseException) for row in rows)


async def test_the_time_limit_of_a_statement_holds_in_a_batch(database: Database) -> None:
    """The calls that wait get the error too, so that nobody waits for several limits one after another."""

    async def sleep(number: int, seconds: float) -> Row:
        return await database.autocommit.fetch_one(SLEEP, number, seconds, lock_order=(number,))

    slow = asyncio.create_task(sleep(0, 30))
    await asyncio.sleep(0.05)
    rows = await asyncio.gather(slow, *(sleep(number, 0) for number in range(1, 4)), return_exceptions=True)
    assert all(isinstance(row, TRANSIENT) for row in rows)

    assert (await sleep(5, 0))["id"] == 5


async def test_a_batch_whose_outcome_is_unknown_is_not_run_again(database: Database) -> None:
    """If the connection breaks, every call of the batch gets that error, as it would alone."""
    await share_one(database)
    calls = [
        asyncio.create_task(database.autocommit.fetch_one(ADD_SLOWLY, room, lock_order=(room,))) for room in range(5)
    ]
    async with within(10):
        while not await database.autocommit.fetchval(TERMINATE_SLEEPING):  # noqa: ASYNC110 - the server changes
            await asyncio.sleep(0.01)
    rows = await asyncio.gather(*calls, return_exceptions=True)

    assert all(isinstance(row, TRANSIENT) for row in rows)
    assert await count(database) == 0
    assert (await add(database, 7))["id"] == 7


async def test_in_a_transaction_nothing_is_shared(database: Database) -> None:
    """The statement belongs to the transaction and is rolled back with it."""

    async def fail() -> None:
        async with database.transaction() as connection:
            row = await connection.fetch_one(ADD, 1, 2, lock_order=(1,))
            assert row["id"] == 1
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    assert await count(database) == 0


async def test_replicas_with_opposite_orders_do_not_deadlock(scratch_url: str, database: Database) -> None:
    """Two replicas change the same rooms at the same time, many times over; nothing is lost."""
    await asyncio.gather(*(add(database, room) for room in range(20)))
    async with open_database(scratch_url, name="replica", pool_size=20) as replica:

        async def change(where: Database, room: int) -> None:
            await where.autocommit.fetch_one(CHANGE, room, lock_order=(room,))

        for _ in range(20):
            await asyncio.gather(
                *(change(database, room) for room in range(20)), *(change(replica, room) for room in range(19, -1, -1))
            )

    assert {row["beds"] for row in await database.autocommit.fetch("SELECT beds FROM rooms")} == {42}
    deadlocks = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
    assert await database.autocommit.fetchval(deadlocks) == 0


ACTIVE = """
SELECT count(*)
FROM pg_stat_activity
WHERE datname = current_database()
  AND state = 'active'
  AND pid <> pg_backend_pid()
"""


async def test_a_batch_that_takes_too_long_has_no_effect_afterwards(database: Database) -> None:
    """Each of its statements keeps its own time limit, but not all of them together that of the batch. Soon after its
    calls have failed, the server has stopped working on it.
    """
    first = asyncio.create_task(database.autocommit.fetch_one(SLOWLY, 100, lock_order=(100,)))
    await asyncio.sleep(0)  # it is under way: the others wait for it, and then share a transaction
    calls = [database.autocommit.fetch_one(SLOWLY, room, lock_order=(room,)) for room in range(8)]
    rows = await asyncio.gather(first, *calls, return_exceptions=True)
    assert all(isinstance(row, TRANSIENT) for row in rows[1:])

    async with within(2):
        while await database.autocommit.fetchval(ACTIVE):  # noqa: ASYNC110 - the server changes
            await asyncio.sleep(0.05)
    assert await count(database) == sum(not isinstance(row, BaseException) for row in rows)


async def test_batches_keep_their_connection(database: Database) -> None:
    """Also after calls that failed: a sold-out night must not cost a new connection."""
    pids = set()
    for room in range(10):
        pids.add((await add(database, room))["pid"])
        with pytest.raises(asyncpg.CheckViolationError):
            await add(database, 100 + room, beds=0)
        await asyncio.gather(*(add(database, 1000 + 10 * room + more) for more in range(5)))

    assert len(pids) == 1


async def test_a_connection_that_the_server_has_ended_is_replaced(database: Database) -> None:
    """One call gets an error at most: the client may not have noticed yet."""
    pid = (await add(database, 1))["pid"]
    await database.autocommit.execute("SELECT pg_terminate_backend($1)", pid)
    with suppress(*TRANSIENT):
        await add(database, 2)

    assert (await add(database, 3))["pid"] != pid


async def test_after_a_broken_connection_the_others_are_replaced_too(database: Database) -> None:
    """They may be dead without knowing it, and each would cost a call its time limit."""
    broken = asyncio.create_task(database.autocommit.fetch_one(SLEEP, 1, 30, lock_order=()))
    await asyncio.sleep(0)
    pid = (await add(database, 1))["pid"]
    async with within(10):
        while not await database.autocommit.fetchval(TERMINATE_SLEEPING):  # noqa: ASYNC110 - the server changes
            await asyncio.sleep(0.01)
    with pytest.raises(TRANSIENT):
        await broken

    assert (await add(database, 2))["pid"] != pid


async def test_a_batch_that_ends_after_the_database_was_closed_leaves_no_connection(scratch_url: str) -> None:
    """Nobody would close it."""
    sessions = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'late'"
    admin = await asyncpg.connect(scratch_url)
    try:
        async with within(10), open_database(scratch_url, name="late", pool_size=2) as database:
            call = asyncio.create_task(database.autocommit.fetch_one(SLEEP, 1, 0.5, lock_order=()))
            while not await admin.fetchval(f"{sessions} AND wait_event = 'PgSleep'"):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        await call

        async with within(10):
            while await admin.fetchval(sessions):  # noqa: ASYNC110 - the server changes
                await asyncio.sleep(0.05)
    finally:
        await admin.close()
