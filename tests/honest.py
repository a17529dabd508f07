"""An honest guest beside attacks and floods."""

import itertools
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from tests.conftest import Hotel


@contextmanager
def honest(hotel: Hotel) -> Iterator[None]:
    """A guest who searches, books and looks during the block; none of the calls may fail."""
    guest = hotel.caller()
    booking = hotel.booking(roomType=hotel.room_type(10_000))
    seen: Counter[str] = Counter()
    done = threading.Event()

    def use() -> None:
        for number in itertools.count():
            if done.is_set() and number >= 5:
                return
            answers = [guest.request("GET", "/orders"), guest.request("GET", "/rooms")]
            if number % 5 == 0:
                answers.append(guest.request("POST", "/orders", json=booking))
            for answer in answers:
                seen["good" if answer.is_success else f"{answer.status_code}: {answer.text[:200]}"] += 1
            time.sleep(0.05)

    thread = threading.Thread(target=use)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
    assert set(seen) == {"good"}, seen
    assert seen["good"] >= 10
