"""Messages to guests."""

from chaos.load import PHONE_OF_A_LATE_ANSWER, PHONE_OF_A_LOST_ANSWER, a_stay
from chaos.nemesis import until
from chaos.rig import Rig, let_run
from chaos.scenario import scenario
from ops import kakao

DUE = "UPDATE messages SET next_try_at = now() WHERE status IN ('PENDING', 'ACCEPTED')"
UNFINISHED = "SELECT count(*) FROM messages WHERE status IN ('PENDING', 'ACCEPTED')"


@scenario(27, "the provider of messages away, its answers lost, the sender killed: each change is told once")
async def untold(rig: Rig) -> None:
    """The audit counts the messages in the provider's own log (A8)."""
    guest, log = rig.caller("victim"), rig.stack.home / kakao.LOG
    async with rig.nemesis.stopped("kakao"):
        away = [await guest.book(**a_stay(rig.chance)) for _ in range(5)]
        rig.demand(all(each.is_paid for each in away), "a booking waited for the provider of messages")
        await let_run(rig.seconds(8))
    for _ in range(3):
        await guest.book(phoneNo=PHONE_OF_A_LOST_ANSWER, **a_stay(rig.chance))
        late = await guest.book(phoneNo=PHONE_OF_A_LATE_ANSWER, **a_stay(rig.chance))
        await until(lambda late=late: late.order_id in log.read_text(), "no message reaches the provider")
        await rig.nemesis.kill("mypage_svc")  # the provider has the message, and the sender does not know it
    await rig.nemesis.kill("kakao")

    async def all_known() -> bool:
        await rig.sql("mypage_svc", DUE)  # a claim of a killed sender lasts a minute; here it ends now
        return int(await rig.sql("mypage_svc", UNFINISHED)) < 20  # the load goes on

    await until(all_known, "messages are never sent", seconds=120)
