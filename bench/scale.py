"""A stack with millions of past orders in every table, loaded in turn with an empty one: `make bench SCALE=orders`."""

from collections.abc import Callable
from pathlib import Path

import asyncpg
import uvloop

from bench.against import ROOT, contest, report, running
from ops import console
from ops.services import SANDBOX
from ops.stack import Stack

CHUNK = 50_000
# The id of the n-th order: a UUIDv7 of the past, the same in every database.
ORDER = (
    "(lpad(to_hex(1600000000000 + n * 1000), 12, '0') || '7' || substr(md5(n::text), 1, 3) "
    "|| 'a' || substr(md5(n::text), 4, 15))::uuid"
)
OWNER = "'guest-' || n / 5"
WHEN = "'2020-10-01'::timestamptz + n * interval '1 second'"
BOOKING = (
    f"jsonb_build_object('owner', {OWNER}, 'name', 'Guest', 'phone_no', '', 'room_type', 'Past', 'guest_cnt', 2, "
    "'check_in', '2021-01-01', 'check_out', '2021-01-02', 'currency', 'KRW', 'amount', '1')"
)
EVENTS = f"INSERT INTO inbox (event_id, received_at) SELECT {ORDER}, {WHEN}"
OUTBOX = f"""
INSERT INTO outbox (event_id, aggregate_id, aggregate_version, type, payload, traceparent, occurred_at, published_at)
SELECT {ORDER}, ({ORDER})::text, 1, 'gotohotel.past.v1.Past', sha256(n::text::bytea), '', {WHEN}, now()
"""
REQUESTS = f"""
INSERT INTO requests (subject, method, request_id, fingerprint, response, claimed_at)
SELECT {OWNER}, 'Past', 'past-' || n, sha256(n::text::bytea), sha256(n::text::bytea), now()
"""
FACT = (
    f"jsonb_build_object('event', 'Ordered', 'time', ({WHEN})::text, 'booking', {BOOKING}, "
    "'amount', jsonb_build_array('KRW', '1'))"
)
STATEMENTS = {
    "order_svc": (
        f"""
        INSERT INTO orders (id, owner, name, phone_no, room_type, guest_cnt, check_in, check_out, nights_held, currency,
            amount, status, paid_at, version, created_at, updated_at, expires_at)
        SELECT {ORDER}, {OWNER}, 'Guest', '', 'Past', 2, '2021-01-01', '2021-01-02', 1, 'KRW', 1, 'PAID', {WHEN}, 1,
            {WHEN}, {WHEN}, {WHEN}
        """,
        OUTBOX,
        EVENTS,
        REQUESTS,
    ),
    "pay_svc": (
        f"""
        INSERT INTO payments (id, order_id, owner, booking, currency, amount, refunded, status, card_brand, card_last4,
            decline_reason, approval_no, approved_at, version, created_at, updated_at)
        SELECT {ORDER}, {ORDER}, {OWNER}, {BOOKING}, 'KRW', 1, 0, 'APPROVED', 'VISA', '4242', '', 'A' || n, {WHEN}, 1,
            {WHEN}, {WHEN}
        """,
        OUTBOX,
    ),
    "reservation_svc": (
        f"""
        INSERT INTO reservations (order_id, booking, status, version, created_at, updated_at)
        SELECT {ORDER}, {BOOKING}, 'RECEIVED', 1, {WHEN}, {WHEN}
        """,
        OUTBOX,
        EVENTS,
    ),
    "mypage_svc": (
        f"""
        INSERT INTO mypages (order_id, owner, facts, updated_at)
        SELECT {ORDER}, {OWNER}, jsonb_build_object('order/1', {FACT}), {WHEN}
        """,
        f"""
        INSERT INTO messages (order_id, change, template, phone_no, variables, occurred_at, status)
        SELECT {ORDER}, 'GTH_ORDERED', 'GTH_ORDERED', '', '{{}}', {WHEN}, 'DELIVERED'
        """,
        EVENTS,
    ),
    SANDBOX: (
        f"""
        INSERT INTO entries (key, kind, order_id, reason, currency, amount, approval_no)
        SELECT {ORDER}, 'CHARGE', ({ORDER})::text, '', 'KRW', 1, 'A' || n
        """,
    ),
}


async def fill(stack: Stack, orders: int, *, advance: Callable[[int], None]) -> None:
    """Writes that many past orders into every table of every service."""
    for database, statements in STATEMENTS.items():
        connection = await asyncpg.connect(stack.database_url(database, "postgres"))
        try:
            await connection.execute("SET synchronous_commit = off")
            for begin in range(0, orders, CHUNK):
                for statement in statements:
                    await connection.execute(
                        f"{statement} FROM generate_series({begin + 1}, {min(begin + CHUNK, orders)}) AS n"
                    )
                advance(min(CHUNK, orders - begin))
            await connection.execute("VACUUM ANALYZE")
            await connection.execute("CHECKPOINT")
        finally:
            await connection.close()


def scale(orders: int, *, rounds: int, seconds: float, clients: int) -> None:
    """Compares a stack with that many past orders with an empty one."""
    with (
        running("full", ROOT, Path(".run/full")) as full,
        running("empty", ROOT, Path(".run/empty")) as empty,
    ):
        with console.progress("filling", orders * len(STATEMENTS)) as advance:
            uvloop.run(fill(full.stack, orders, advance=advance))
        with console.progress(f"{rounds} rounds", 2 * rounds) as advance:
            found = uvloop.run(contest([full, empty], rounds=rounds, seconds=seconds, clients=clients, advance=advance))
    report(found["full"], found["empty"], "empty")
