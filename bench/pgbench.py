"""The order path's own statements in pgbench, on the same server: what the database alone could do.

One pgbench transaction is what a paid order makes the server write before the guest gets the answer: the order with its
night, the payment's intent, the sandbox processor's entry, the payment's result, the order's payment, each committed
separately. The work after the answer (relays, handlers, My page) is in the load, but not here.
"""

import asyncio
import os
import re
import subprocess
from pathlib import Path

import asyncpg

from gotohotel.columns import Statement
from gotohotel.database import SESSION
from gotohotel.schema import KERNEL_MIGRATIONS, migrate
from ops import postgres
from ops.stack import Stack
from order_svc.domain import FACTS
from order_svc.store import orders
from pay_svc import sandbox
from pay_svc import store as payments

ROOT = Path(__file__).parents[1]
ROOM_TYPE = "Bench"
PAYLOAD = f"'\\x{bytes(range(160)).hex()}'::bytea"
SCHEMAS = {
    "order_svc": ("orders", "guests", "allotment", "room_types", "requests", "outbox"),
    "pay_svc": ("payments", "guest_attempts", "outbox"),
    "sandbox": ("entries", "ledger"),
}
MIGRATIONS = {
    "order_svc": (KERNEL_MIGRATIONS, ROOT / "order_svc" / "migrations"),
    "pay_svc": (KERNEL_MIGRATIONS, ROOT / "pay_svc" / "migrations"),
    "sandbox": (sandbox.MIGRATIONS,),
}

# pgbench variables: a new id for the order and for each of its two events.
HEAD = """\
\\set order_no :client_id * 10000000000 + random(1, 9999999999)
\\set night random(2, 299)
"""


async def measure(stack: Stack, *, clients: int, seconds: int) -> float:
    """Transactions a second."""
    url = stack.database_url("postgres", "postgres")
    admin = await asyncpg.connect(url)
    await admin.execute("DROP DATABASE IF EXISTS bench")
    await admin.execute("CREATE DATABASE bench")
    await admin.close()
    url = stack.database_url("bench", "postgres")
    connection = await asyncpg.connect(url)
    for schema, folders in MIGRATIONS.items():
        await connection.execute(f"CREATE SCHEMA {schema}")
        await migrate(f"{url}?options=-csearch_path%3D{schema}", *folders)
    await connection.execute(
        f"""
        INSERT INTO order_svc.room_types VALUES ('{ROOM_TYPE}', 1, '', 10000, 9, 'KRW', 1);
        INSERT INTO order_svc.allotment
        SELECT '{ROOM_TYPE}', current_date + day, 10000, 10000 FROM generate_series(0, 400) AS day;
        """
    )
    await connection.close()
    script = stack.home / "order_path.sql"
    script.write_text(order_path())
    command = [
        *(postgres.program("pgbench"), "-n", "-M", "prepared", "-f", str(script)),
        *("-c", str(clients), "-j", "2", "-T", str(seconds), url),
    ]
    session = " ".join(f"-c {name}={value}" for name, value in SESSION.items())  # the services' own settings
    environment = {**os.environ, "PGOPTIONS": session}
    done = await asyncio.to_thread(
        subprocess.run, command, capture_output=True, text=True, check=False, env=environment
    )
    found = re.search(r"tps = ([\d.]+)", done.stdout)
    if done.returncode != 0 or found is None:
        raise RuntimeError(f"pgbench fails: {done.stderr}")
    return float(found[1])


def order_path() -> str:
    """pgbench's script: the services' own statements with their parameters written in."""
    order_id = "lpad(to_hex((:order_no)::bigint), 32, '0')::uuid"
    card = {"card_brand": "'VISA'", "card_last4": "'4242'", "card_fingerprint": PAYLOAD}
    booking = '\'{"name": "Bench", "room_type": "Bench", "guest_cnt": 2}\''
    columns = (*orders.CHANGES.names, *orders.CLAIM_COLUMNS, *payments.ATTEMPT.names, *payments.STATE.names)
    unset = dict.fromkeys(columns, "NULL")
    common = {
        **unset, **card,
        **dict.fromkeys(("id", "order_id", "attempt_id"), order_id),
        **dict.fromkeys(("created_at", "updated_at"), "now()"),
        "owner": f"{order_id}::text", "name": "'bench'",
        **dict.fromkeys(("phone_no", "decline_reason", "approval_no", "confirmation_no"), "''"),
        "declined_at": "'{}'", "booking": booking, "currency": "'KRW'",
        "amount": "1", "refunded": "0", "version": "0", "revision": "1",
    }  # fmt: skip
    order = {
        **common, "room_type": f"'{ROOM_TYPE}'", "room_type_version": "1", "guest_cnt": "2",
        "check_in": "(current_date + :night::integer)", "check_out": "(current_date + :night::integer + 1)",
        "status": "'PAYMENT_PENDING'", "attempt_until": "now()", "expires_at": "now() + interval '15 minutes'",
        **dict.fromkeys(("max_unpaid_orders", "max_unpaid_nights", "max_in_progress"), "100"),
    }  # fmt: skip
    attempt = {
        **common, "status": "'PENDING'", "attempt_open_since": "now()", "max_declines": "10", "attempt_revision": "1",
        "since": "now()",
    }  # fmt: skip
    paid = {**common, "version": "1", "status": "'PAID'", FACTS[0]: "now()"}
    entry = [order_id, "'CHARGE'", f"{order_id}::text", "''", "'KRW'", "1::numeric", "'0123456789AB'"]
    one_event, no_event = _events(f"ARRAY[{order_id}::text]"), _events("")
    statements = [
        ("order_svc", _filled(orders.PLACE, {**order, "resource_id": "NULL", **one_event})),
        ("pay_svc", _filled(payments.ADD, {**attempt, **no_event})),
        ("sandbox", re.sub(r"\$(\d+)", lambda match: f"({entry[int(match[1]) - 1]})", sandbox.ENTER)),
        ("pay_svc", _filled(payments.SAVE, {**common, "status": "'APPROVED'", "version": "1", **one_event})),
        ("order_svc", _filled(orders.SAVE_QUIETLY, paid)),
    ]
    return HEAD + "".join(_with_schema(schema, sql) for schema, sql in statements)


def _events(aggregate_ids: str) -> dict[str, str]:
    """The outbox's parameters: one row for an aggregate, or none for ""."""
    one = {
        "event_ids": "ARRAY[uuidv7()]",
        "aggregate_ids": aggregate_ids,
        "aggregate_versions": "ARRAY[1]",
        "types": "ARRAY['type']",
        "payloads": f"ARRAY[{PAYLOAD}]",
        "traceparents": "ARRAY['trace']",
        "occurred_ats": "ARRAY[now()]",
    }
    return one if aggregate_ids else dict.fromkeys(one, "'{}'")


def _filled(statement: Statement, values: dict[str, str]) -> str:
    return re.sub(r"(?<!:):([a-z]\w*)", lambda found: f"({values[found[1]]})", statement.source)


def _with_schema(schema: str, sql: str) -> str:
    for table in SCHEMAS[schema]:
        sql = re.sub(rf"(FROM|INTO|UPDATE|JOIN|OF) {table}\b", rf"\1 {schema}.{table}", sql)
    # FOR UPDATE OF takes a name, not a schema.
    sql = sql.replace(f"OF {schema}.", "OF ")
    return " ".join(sql.split()) + ";\n"
