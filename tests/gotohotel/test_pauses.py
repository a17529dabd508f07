"""Pauses between batches grow while the process has to wait for the processor, and shrink again."""

import asyncio
import time

from gotohotel.batches import LEAST_PAUSE, MOST_PAUSE, Pause
from tests.conftest import within


async def take_late(pause: Pause) -> None:
    """One pause at whose end the event loop is busy for a while."""
    asyncio.get_running_loop().call_later(pause.seconds - 0.001, time.sleep, 0.02)
    await pause.take()


async def test_pauses_grow_while_the_event_loop_is_late() -> None:
    """Up to the longest one and not beyond it, however late it is."""
    pause = Pause()
    assert pause.seconds == LEAST_PAUSE
    lengths = []
    for _ in range(8):
        await take_late(pause)
        lengths.append(pause.seconds)

    assert lengths == sorted(lengths)
    assert lengths[-1] == MOST_PAUSE


async def test_pauses_shrink_again_when_it_is_on_time() -> None:
    """Even on a machine with other work most pauses end in time."""
    pause = Pause()
    for _ in range(8):
        await take_late(pause)
    async with within(30):
        while pause.seconds == MOST_PAUSE:
            await pause.take()


async def test_one_long_standstill_is_soon_forgotten() -> None:
    """As after the process was stopped: it counts like a pause that ended late by its longest."""
    pause = Pause()
    asyncio.get_running_loop().call_soon(time.sleep, 0.5)
    await pause.take()

    assert pause.seconds < MOST_PAUSE
