"""How fast My page is rebuilt, beside what bounds it: reading the same stream, and NATS's writes to the disk."""

import asyncio
import time

from gotohotel.bus.streams import EVENTS
from ops.console import Progress
from ops.page_store import NATS, POSTGRES
from ops.rebuild import rebuild
from ops.stack import Stack
from ops.stream import jetstream, messages_of

WRITES, SCRATCH = 5000, "bench"


async def measure(stack: Stack) -> dict[str, float]:
    """Events (or writes) per second. The pages are in NATS afterwards."""
    rates = {}
    async with jetstream(stack) as js:
        began, count = time.perf_counter(), 0
        async for _ in messages_of(js, str(EVENTS.name)):
            count += 1
        rates["events read, and nothing done"] = count / (time.perf_counter() - began)
    for store in (POSTGRES, NATS):
        began = time.perf_counter()
        done = await rebuild(stack, progress=Progress(), store=store)
        rates[f"events rebuilt in {store}"] = done.events / (time.perf_counter() - began)
    async with jetstream(stack) as js:
        bucket = await js.create_key_value(bucket=SCRATCH)
        began = time.perf_counter()
        await asyncio.gather(*(bucket.put(str(number), bytes(1000)) for number in range(WRITES)))
        rates["writes of 1,000 bytes to a bucket"] = WRITES / (time.perf_counter() - began)
        await js.delete_key_value(SCRATCH)
    return rates
