"""Each process and each connection in turn."""

from chaos.links import LINKS
from chaos.rig import Rig, let_run
from chaos.scenario import scenario
from ops.configuration import PROCESSES
from ops.services import SERVICES


@scenario(
    17,
    "each process killed under load, each service restarted: nothing lost after one retry",
    one_retry_helps=True,
)
async def kills(rig: Rig) -> None:
    """kill -9 of each of the seven processes; the services are also restarted in order."""
    for name in SERVICES:
        await rig.nemesis.restart(name)
        await rig.works_again()
    for name in PROCESSES:
        await rig.nemesis.kill(name)
        await rig.works_again()


@scenario(21, "each process frozen for a while")
async def freezes(rig: Rig) -> None:
    """SIGSTOP, SIGCONT."""
    for name in PROCESSES:
        async with rig.nemesis.frozen(name):
            await let_run(rig.seconds(3))
        await rig.works_again()


@scenario(22, "each connection between two parts cut for a while")
async def cuts(rig: Rig) -> None:
    """Data is discarded, and neither side is told."""
    links = list(LINKS)
    rig.chance.shuffle(links)
    for caller, part in links:
        async with rig.nemesis.cut(caller, part):
            await let_run(rig.seconds(2.5))
        await rig.works_again()
