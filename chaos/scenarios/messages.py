"""Messages to guests."""

import json
from functools import partial
from pathlib import Path

from chaos.load import PHONE_OF_A_DOUBLED_ANSWER, PHONE_OF_A_LATE_ANSWER, PHONE_OF_A_LOST_ANSWER, a_stay
from chaos.nemesis import until
from chaos.rig import Rig, let_run
from chaos.scenario import scenario
from ops import kakao

DUE = "UPDATE messages SET next_try_at = now() WHERE order_id = ANY($1) AND status IN ('PENDING', 'ACCEPTED')"
UNTOLD = "SELECT count(*) FROM messages WHERE order_id = ANY($1) AND status <> 'DELIVERED'"
TOLD = "SELECT count(*) FROM messages WHERE order_id = ANY($1) AND status = 'DELIVERED'"


class _Log:
    """The provider's log, of which each line is read once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read = 0
        self._orders: set[str] = set()

    def has(self, order_id: str) -> bool:
        """Whether the provider has a message about this order."""
        with self._path.open("rb") as log:
            log.seek(self._read)
            whole, _, _ = log.read().rpartition(b"\n")
        if whole:
            self._read += len(whole) + 1
            self._orders |= {json.loads(line)["orderId"] for line in whole.splitlines()}
        return order_id in self._orders


@scenario(27, "the provider of messages away, its answers lost or doubled, the sender killed: each change is told once")
async def untold(rig: Rig) -> None:
    """Counted in the provider's own log; the audit does so for the load (A8)."""
    guest, log = rig.caller("victim"), rig.stack.home / kakao.LOG
    async with rig.nemesis.stopped("kakao"):
        booked = [await guest.book(**a_stay(rig.chance)) for _ in range(5)]
        rig.demand(all(each.is_paid for each in booked), "a booking waited for the provider of messages")
        await let_run(rig.seconds(8))
    lines = _Log(log)
    backlog_seconds = 30 + rig.seconds(8)  # what waited goes out first
    for _ in range(3):
        booked += [
            await guest.book(phoneNo=phone_no, **a_stay(rig.chance))
            for phone_no in (PHONE_OF_A_LOST_ANSWER, PHONE_OF_A_DOUBLED_ANSWER)
        ]
        late = await guest.book(phoneNo=PHONE_OF_A_LATE_ANSWER, **a_stay(rig.chance))
        booked.append(late)
        reached = partial(lines.has, late.order_id)
        await until(reached, "no message reaches the provider", seconds=backlog_seconds)
        await rig.nemesis.kill("mypage_svc")  # the provider has the message, and the sender does not know it
    await rig.nemesis.kill("kakao")
    orders = [each.order_id for each in booked]

    async def all_told() -> bool:
        await rig.sql("mypage_svc", DUE, orders)  # a claim of a killed sender lasts a minute; here it ends now
        told, untold = [await rig.sql("mypage_svc", count, orders) for count in (TOLD, UNTOLD)]
        return bool(told >= 2 * len(orders) and not untold)  # placed and paid

    await until(all_told, "messages are never delivered", seconds=120 + backlog_seconds)
    taken = [json.loads(line) for line in log.read_text().splitlines()]
    keys = [each["recipientGroupingKey"] for each in taken if each["orderId"] in orders]
    told = await rig.sql("mypage_svc", TOLD, orders)
    rig.demand(len(keys) == len(set(keys)) == told, f"{told} messages were delivered, the provider has {len(keys)}")
