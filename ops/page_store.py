"""Where My page keeps its pages: MYPAGE_STORE=postgres or nats in the environment."""

import os

import asyncpg
from nats.js import JetStreamContext

from mypage_svc.store import PageBucket
from ops.errors import StackError
from ops.services import MYPAGE, SERVICES

POSTGRES, NATS = STORES = ("postgres", "nats")
BUCKETS = SERVICES[MYPAGE].buckets  # the pages are in one of them, and are rebuilt in the other

# Only of a hotel without pages: those of another one are moved by a rebuild.
IS_NEW = "SELECT place = 'postgres' AND NOT EXISTS (SELECT FROM mypages) FROM pages_in"
# A service that runs with another setting must not write where nobody reads.
CHOOSE = f"""
UPDATE pages_in SET place = '{{bucket}}';
REVOKE ALL ON mypages FROM {MYPAGE};
"""


def wanted() -> str:
    """The store that this environment asks for."""
    store = os.environ.get("MYPAGE_STORE") or POSTGRES
    if store not in STORES:
        raise StackError(f"The setting MYPAGE_STORE takes {' or '.join(STORES)}, not {store!r}.")
    return store


async def place(database_url: str) -> str:
    """Where the pages are: POSTGRES, or the name of a bucket."""
    connection = await asyncpg.connect(database_url, timeout=3)
    try:
        return str(await connection.fetchval("SELECT place FROM pages_in"))
    finally:
        await connection.close()


def require_wanted(pages_in: str) -> None:
    """Raises StackError if the pages are not where this environment wants them."""
    if (pages_in == POSTGRES) != (wanted() == POSTGRES):
        raise StackError(
            f"MYPAGE_STORE is {wanted()}, but the pages are in {pages_in}: set it to "
            f"{POSTGRES if pages_in == POSTGRES else NATS}, or move them first (`gotohotel rebuild --store`)."
        )


async def declare(database_url: str, js: JetStreamContext) -> None:
    """Chooses the store of a new hotel, and makes the bucket if the pages are in one."""
    connection = await asyncpg.connect(database_url, timeout=3)
    try:
        if wanted() == NATS and await connection.fetchval(IS_NEW):
            async with connection.transaction():
                await connection.execute("SET LOCAL lock_timeout = '5s'")
                await connection.execute("LOCK TABLE mypages IN ACCESS EXCLUSIVE MODE")
                if await connection.fetchval(IS_NEW):
                    await connection.execute(CHOOSE.format(bucket=BUCKETS[0]))
        place = await connection.fetchval("SELECT place FROM pages_in")
    finally:
        await connection.close()
    if place != POSTGRES:
        await PageBucket.make(js, place)
