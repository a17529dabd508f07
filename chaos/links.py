"""Connections between the parts of a stack that can be cut and restored."""

import asyncio
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from ops.configuration import PROCESSES
from ops.services import SERVICES

# Who calls whom: (process, name of the port that it calls).
GATEWAY = "envoy"
LINKS = (
    *((GATEWAY, PROCESSES[service]) for service in SERVICES),
    ("order_svc", "egress"),
    ("reservation_svc", "egress"),
    *((service, part) for part in ("postgres", "nats") for service in SERVICES),
)

CHUNK = 64 * 1024


@dataclass
class Link:
    """One caller's connections to one part. While it is cut, data does not arrive and neither side is told."""

    caller: str
    part: str
    target_port: int
    detour: int | None = None  # connects here instead
    port: int = 0
    swallowed: int = 0  # pieces of data that were discarded while it was cut
    there: asyncio.Event = field(default_factory=asyncio.Event)  # forwarding towards the part
    back: asyncio.Event = field(default_factory=asyncio.Event)  # forwarding from the part
    _connections: dict[asyncio.StreamWriter, asyncio.StreamWriter] = field(default_factory=dict)
    _pumping: set[asyncio.Task[None]] = field(default_factory=set)

    async def open(self) -> None:
        """Starts to listen on a free port."""
        self.there.set()
        self.back.set()
        self._server = await asyncio.start_server(self._connect, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Ends every connection and stops listening."""
        self._server.close()
        self.heal()
        while self._pumping:
            await asyncio.wait(self._pumping)

    def heal(self) -> None:
        """Ends every connection, as if after a real cut both ends had given up, and forwards new ones.

        Discarded data stays lost.
        """
        for caller, part in list(self._connections.items()):
            for writer in (caller, part):
                writer.transport.abort()
        self._connections.clear()
        self.there.set()
        self.back.set()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if task := asyncio.current_task():
            self._pumping.add(task)
            task.add_done_callback(self._pumping.discard)
        if not self.there.is_set():
            self.swallowed += 1
            await self.there.wait()  # as if the SYN were lost: the caller's own timeout applies
        try:
            to_part = await asyncio.open_connection("127.0.0.1", self.detour or self.target_port)
        except OSError:
            writer.transport.abort()
            return
        self._connections[writer] = to_part[1]
        await asyncio.gather(self._pump(reader, to_part[1], self.there), self._pump(to_part[0], writer, self.back))
        self._connections.pop(writer, None)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, gate: asyncio.Event) -> None:
        with suppress(OSError):
            while piece := await reader.read(CHUNK):
                if not gate.is_set():
                    self.swallowed += 1
                    await gate.wait()
                writer.write(piece)
                await writer.drain()
        writer.close()


class Links:
    """All links of a stack, in a thread of their own, so that nothing else delays them.

    The gateway has a link to each replica of a service; they are cut together.
    """

    def __init__(self, ports: Mapping[str, int], further: Mapping[str, Sequence[int]]) -> None:
        """`ports` has the port of each part, `further` those of the further replicas of the services."""
        self._links = {
            (caller, part): [
                Link(caller, part, target_port=port)
                for port in (ports[part], *(further[part] if caller == GATEWAY else ()))
            ]
            for caller, part in LINKS
        }
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def open(self) -> dict[tuple[str, str], int]:
        """Opens all; returns where each caller finds each part, of a service the stack's own process."""
        self._thread.start()
        for link in self._all():
            asyncio.run_coroutine_threadsafe(link.open(), self._loop).result(timeout=10)
        return {names: links[0].port for names, links in self._links.items()}

    def of(self, port: int) -> list[int]:
        """The ports of all links that begin and end where the one with this port does; none if there is no such."""
        return next(
            ([each.port for each in links] for links in self._links.values() if port in [each.port for each in links]),
            [],
        )

    def close(self) -> None:
        """Closes all."""
        for link in self._all():
            asyncio.run_coroutine_threadsafe(link.close(), self._loop).result(timeout=10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=10)
        self._loop.close()

    def cut(self, names: tuple[str, str], *, there: bool = True, back: bool = True) -> None:
        """Discards data from now on, in one direction or in both."""
        for link in self._links[names]:
            link.swallowed = 0
            for gate, closes in ((link.there, there), (link.back, back)):
                if closes:
                    self._loop.call_soon_threadsafe(gate.clear)

    def redirect(self, names: tuple[str, str], port: int | None) -> None:
        """Directs new connections to this port, or (None) to the part itself again, and ends the existing ones."""
        for link in self._links[names]:
            link.detour = port
            self._loop.call_soon_threadsafe(link.heal)

    def swallowed(self, names: tuple[str, str]) -> int:
        """How many pieces of data the cut has discarded."""
        return sum(link.swallowed for link in self._links[names])

    def heal(self, names: tuple[str, str]) -> None:
        """Forwards everything again."""
        for link in self._links[names]:
            self._loop.call_soon_threadsafe(link.heal)

    def _all(self) -> Iterator[Link]:
        for links in self._links.values():
            yield from links
