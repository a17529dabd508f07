"""Reads server-sent events of a page in the background."""

import json
import queue
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import httpx
import pytest

from tests.conftest import WAIT_SECONDS, Hotel

Event = tuple[str, str, Any]  # id, name, data


class Watcher:
    """Reads server-sent events in the background."""

    def __init__(self) -> None:
        self.head: httpx.Response | None = None
        self.comments = 0
        self._events: queue.Queue[Event | None] = queue.Queue()

    def next(self) -> Event:
        """The next event. Fails the test if none comes, or if the stream has ended."""
        try:
            event = self._events.get(timeout=WAIT_SECONDS)
        except queue.Empty:
            pytest.fail("no event has come")
        if event is None:
            pytest.fail("the stream has ended")
        return event

    def until(self, **expected: str) -> Event:
        """The first event whose page has these values."""
        while True:
            event = self.next()
            if all(event[2].get(name) == value for name, value in expected.items()):
                return event

    def next_or_end(self) -> Event | None:
        """The next event; None at the end of the stream, and if none comes for a long time."""
        try:
            return self._events.get(timeout=2 * WAIT_SECONDS)
        except queue.Empty:
            return None

    def rest(self) -> list[Event]:
        """The events that are still to come; waits for the end of the stream."""
        return list(iter(lambda: self._events.get(timeout=WAIT_SECONDS), None))

    def has_news(self) -> bool:
        """Whether an event has come that was not taken yet."""
        return not self._events.empty()

    def read(self, lines: Iterator[str]) -> None:
        """Reads until the end of the stream."""
        fields: dict[str, str] = {}
        with suppress(httpx.HTTPError):
            for line in lines:
                if line.startswith(":"):
                    self.comments += 1
                elif line:
                    name, _, value = line.partition(": ")
                    fields[name] = value
                elif "data" in fields:
                    self._events.put((fields.get("id", ""), fields.get("event", ""), json.loads(fields["data"])))
                    fields = {}
        self._events.put(None)


@contextmanager
def watching(
    hotel: Hotel, order_id: str, token: str = "", *, query: str = "", headers: Mapping[str, str] | None = None
) -> Iterator[Watcher]:
    """Watches a page during the block."""
    watcher = Watcher()
    own = {"Authorization": f"Bearer {token}"} if token else {}
    url = f"{hotel.stack.gateway_url}/mypages/{order_id}:watch{query}"
    with httpx.stream("GET", url, headers={**own, **(headers or {})}, timeout=60) as answer:
        watcher.head = answer
        if answer.status_code != httpx.codes.OK:
            answer.read()
            yield watcher
            return
        reading = threading.Thread(target=watcher.read, args=[answer.iter_lines()], daemon=True)
        reading.start()
        try:
            yield watcher
        finally:
            with suppress(OSError):  # to close the answer would not wake the thread that reads it
                answer.extensions["network_stream"].get_extra_info("socket").shutdown(socket.SHUT_RDWR)
            reading.join(timeout=WAIT_SECONDS)
