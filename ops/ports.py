"""Ports of this machine."""

import atexit
import random
import socket

from ops.errors import StackError

# Below the ephemeral range, so that no outgoing connection takes one before its owner does.
CANDIDATES = range(20_000, 32_000)
BLOCK = 16


def reserve(count: int) -> range:
    """Fewer than BLOCK ports that are free now, and that nobody else gets from here as long as this process lives.

    The port before them is bound, which reserves the others. Raises StackError if there are none.
    """
    blocks = CANDIDATES[::BLOCK]
    for first in random.sample(blocks, len(blocks)):
        chosen = range(first + 1, first + 1 + count)
        if all(map(is_free, chosen)) and (reservation := _bound(first)) is not None:
            atexit.register(reservation.close)  # until then it is kept open
            return chosen
    raise StackError(f"There are no free ports between {CANDIDATES.start} and {CANDIDATES.stop}.")


def is_free(port: int) -> bool:
    """Whether a process could listen on it."""
    bound = _bound(port)
    if bound is not None:
        bound.close()
    return bound is not None


def accepts(port: int, host: str = "127.0.0.1") -> bool:
    """Whether a port of this machine accepts connections."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((host, port)) == 0


def _bound(port: int) -> socket.socket | None:
    """A socket that listens on this port; None if the port is in use."""
    probe = socket.socket()
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        probe.bind(("127.0.0.1", port))
        probe.listen()  # two sockets may be bound to a port as long as neither listens
    except OSError:
        probe.close()
        return None
    return probe
