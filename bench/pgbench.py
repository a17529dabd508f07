"""The order path's own statements in pgbench, on the same server: what the database alone could do.

One pgbench transaction is what a paid order has the server write before the guest gets the answer: the order with
its night, the payment's intent, the sandbox processor's entry, the payment's result, the order's payment, each
committed by itself. What happens behind the answer (relays, handlers, My page) is in the load, but not here.
"""

import asyncio
import os
import re
import subprocess
from pathlib import Path

import asyncpg

from gotohotel.database import KERNEL_MIGRATIONS, SESSION, migrate
from ops import postgres
from ops.stack import Stack
from order_svc import store as orders
from pay_svc import processor
from pay_svc import store as payments

ROOT = Path(__file__).parents[1]
ROOM_TYPE = "Bench"
PAYLOAD = f"'\\x{bytes(range(160)).hex()}'::bytea"
SCHEMAS = {
    "order_svc": ("orders", "allotment", "room_types", "requests", "outbox"),
    "pay_svc": ("payments", "outbox"),
    "sandbox": ("entries", "ledger"),
}
MIGRATIONS = {
    "order_svc": (KERNEL_MIGRATIONS, ROOT / "order_svc" / "migrations"),
    "pay_svc": (KERNEL_MIGRATIONS, ROOT / "pay_svc" / "migrations"),
    "sandbox": (processor.SANDBOX_MIGRATIONS,),
}

# pgbench's variables: a new id for the order and for each of its two events.
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
    session = " ".join(f"-c {name}={value}" for name, value in SESSION.items())  # the services' own
    environment = {**os.environ, "PGOPTIONS": session}
    done = await asyncio.to_thread(
        subprocess.run, command, capture_output=True, text=True, check=False, env=environment
    )
    found = re.search(r"tps = ([\d.]+)", done.stdout)
    if done.returncode != 0 or found is None:
        raise RuntimeError(f"pgbench fails: {done.stderr}")
    return float(found[1])


def order_path() -> str:
    """pgbench's script: the services' own statements, their parameters written in."""
    order_id = "lpad(to_hex((:order_no)::bigint), 32, '0')::uuid"
    card = ["'VISA'::text", "'4242'::text", f"{PAYLOAD}", order_id]
    booking = '\'{"name": "Bench", "room_type": "Bench", "guest_cnt": 2}\'::jsonb'
    open_try = [booking, "'KRW'::text", "1::numeric", "0::numeric", "'PENDING'::text", *card, "now()"]
    closed_try = [booking, "'KRW'::text", "1::numeric", "0::numeric", "'APPROVED'::text", *card, "NULL::timestamptz"]
    none = "NULL::timestamptz"
    place = [
        *(["NULL::text"] * 3),
        *("NULL::bytea", "NULL::text", order_id, "'bench'::text", "'Bench'::text", "''::text", f"'{ROOM_TYPE}'::text"),
        *("2::integer", "(current_date + :night::integer)", "(current_date + :night::integer + 1)", "'KRW'::text"),
        *("1::numeric", "'PAYMENT_PENDING'::text", order_id, "now()", "now()", "now() + interval '15 minutes'", "1"),
        *_events(1, f"{order_id}::text"),
    ]
    paid = [
        *(f"ARRAY[{order_id}]", "ARRAY[1::bigint]", "ARRAY[1::bigint]", "ARRAY['PAID'::text]", "ARRAY[0::numeric]"),
        "ARRAY[now()]",
        *([f"ARRAY[{none}]"] * 6),
        *("ARRAY[''::text]", "ARRAY[NULL::text]", "ARRAY[NULL::text]", "ARRAY[NULL::integer]", f"ARRAY[{order_id}]"),
        *(f"ARRAY[{none}]", "ARRAY[now()]", "ARRAY[true]"),
        *_events(0, "''"),
    ]
    statements = [
        ("order_svc", orders.PLACE, place),
        (
            "pay_svc",
            payments.ADD,
            [
                *(order_id, order_id, "now()", "'bench'::text", *open_try, "''::text", "''::text"),
                *(none, none, none, none, "0::bigint", "now()"),
                *_events(0, "''"),
            ],
        ),
        (
            "sandbox",
            processor.ENTER,
            [order_id, "'CHARGE'", f"{order_id}::text", "''", "'KRW'", "1::numeric", "'0123456789AB'"],
        ),
        (
            "pay_svc",
            payments.SAVE,
            [
                *(order_id, "1::bigint", "'bench'::text", *closed_try, "''::text", "'1'::text"),
                *("now()", none, none, none, "1::bigint", "now()"),
                *_events(1, f"{order_id}::text"),
            ],
        ),
        ("order_svc", orders.SAVE, paid),
    ]
    return HEAD + "".join(_with_parameters(schema, sql, values) for schema, sql, values in statements)


def _events(count: int, aggregate_id: str) -> list[str]:
    """The seven columns of so many outbox rows."""
    values = ["uuidv7()", aggregate_id, "1::bigint", "'type'::text", PAYLOAD, "'trace'::text", "now()"]
    types = ["uuid", "text", "bigint", "text", "bytea", "text", "timestamptz"]
    return [f"ARRAY[{value if count else ''}]::{type_}[]" for value, type_ in zip(values, types, strict=True)]


def _with_parameters(schema: str, sql: str, values: list[str]) -> str:
    sql = re.sub(r"\$(\d+)", lambda match: f"({values[int(match[1]) - 1]})", sql)
    for table in SCHEMAS[schema]:
        sql = re.sub(rf"(FROM|INTO|UPDATE|JOIN|OF) {table}\b", rf"\1 {schema}.{table}", sql)
    # FOR UPDATE OF takes a name, not a schema.
    sql = sql.replace(f"OF {schema}.", "OF ")
    return " ".join(sql.split()) + ";\n"
