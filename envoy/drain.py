"""Drains an Envoy that will be stopped: `drain.py SOCKET SECONDS`, run in its container before it gets SIGTERM.

It asks clients to connect elsewhere (GOAWAY, `Connection: close`), and serves on for these seconds.
"""

import socket
import sys
import time


def main(path: str, seconds: float) -> None:
    """Tells the admin socket to drain, and waits. Raises OSError if nobody listens there."""
    with socket.socket(socket.AF_UNIX) as admin:
        admin.settimeout(5)
        admin.connect(path)
        admin.sendall(
            b"POST /drain_listeners?graceful&skip_exit HTTP/1.1\r\nHost: admin\r\nContent-Length: 0\r\n"
            b"Connection: close\r\n\r\n"
        )
        answer = admin.recv(1000)
    if b" 200 " not in answer:
        sys.exit(f"Envoy does not drain: {answer!r}")
    time.sleep(seconds)


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
