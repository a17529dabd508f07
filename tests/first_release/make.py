"""Runs the first release's own code and saves what it stored: a dump of each database and the stream's events."""

import asyncio
import base64
import gzip
import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import httpx
import nats

from ops import postgres
from ops.stack import Stack

DATABASES = ("order_svc", "pay_svc", "reservation_svc", "mypage_svc", "sandbox")
GOOD, DECLINED = "4242424242424242", "4000000000000002"


def call(client: httpx.Client, method: str, path: str, **body: object) -> Any:
    return client.request(method, path, json=body or None).raise_for_status().json()


def live(stack: Stack) -> None:
    """Places orders and brings them into every state except EXPIRED."""
    as_guest = {"Authorization": f"Bearer {stack.token(subject='alice', role='guest')}"}
    as_desk = {"Authorization": f"Bearer {stack.token(subject='desk', role='desk')}"}
    guest = httpx.Client(base_url=stack.gateway_url, headers=as_guest, timeout=20)
    desk = httpx.Client(base_url=stack.gateway_url, headers=as_desk, timeout=20)
    first = date.today() + timedelta(days=10)  # noqa: DTZ011 - any night will do

    def book(night: int, card: str | None = GOOD) -> str:
        check_in = first + timedelta(days=night)
        body = {
            "name": f"Guest {night}", "roomType": "Normal", "guestCnt": 2, "checkIn": check_in.isoformat(),
            "checkOut": (check_in + timedelta(days=2)).isoformat(), **({"cardNo": card} if card else {}),
        }  # fmt: skip
        order_id = str(call(guest, "POST", "/orders", **body)["id"])
        if card == GOOD:
            while not desk.get(f"/reservations/{order_id}").is_success:
                time.sleep(0.1)
        return order_id

    paid, confirmed, canceled, rejected, ended = (book(night) for night in range(5))
    unpaid, declined = book(5, None), book(6, DECLINED)
    for order_id in (confirmed, ended):
        call(desk, "POST", f"/reservations/{order_id}:confirm", requestId=order_id)
    call(guest, "POST", f"/orders/{canceled}:cancel", reason="plans", requestId="cancel")
    call(desk, "POST", f"/reservations/{rejected}:reject", reason="full")
    call(desk, "POST", f"/reservations/{ended}:cancel", reason="flood")
    states = {
        paid: "PAID", confirmed: "CONFIRMED", canceled: "CANCELED", rejected: "REJECTED", ended: "CANCELED",
        unpaid: "PAYMENT_PENDING", declined: "PAYMENT_PENDING",
    }  # fmt: skip
    for order_id, state in states.items():
        while (
            call(guest, "GET", f"/orders/{order_id}")["status"] != state
            or call(guest, "GET", f"/mypages/{order_id}")["status"] != state
        ):
            time.sleep(0.1)
    time.sleep(2)


async def events(stack: Stack) -> list[dict[str, Any]]:
    """Returns the events of the stream, in stream order."""
    client = await nats.connect(stack.nats_url())
    js = client.jetstream()
    found = []
    for number in range(1, (await js.stream_info("EVENTS")).state.last_seq + 1):
        message = await js.get_msg("EVENTS", number)
        data = base64.b64encode(message.data or b"").decode()
        found.append({"subject": message.subject, "headers": dict(message.headers or {}), "data": data})
    await client.close()
    return found


def main() -> None:
    target = Path(sys.argv[1])
    stack = Stack.on_free_ports(Path(tempfile.mkdtemp(prefix="gotohotel-first-")))
    stack.up()
    try:
        live(stack)
        kept = asyncio.run(events(stack))
        for name in DATABASES:
            command = [
                postgres.program("pg_dump"),
                "--no-owner",
                "--no-privileges",
                stack.database_url(name, "postgres"),
            ]
            done = subprocess.run(
                command, capture_output=True, check=True, env={**os.environ, "PGCLIENTENCODING": "UTF8"}
            )
            (target / f"{name}.sql.gz").write_bytes(gzip.compress(done.stdout, mtime=0))
    finally:
        stack.down()
    lines = "".join(json.dumps(event) + "\n" for event in kept)
    (target / "events.jsonl.gz").write_bytes(gzip.compress(lines.encode(), mtime=0))


if __name__ == "__main__":
    main()
