"""A name server on loopback that knows who is ready, as a cluster's does for a headless Service."""

import socket
import struct
import threading
from contextlib import suppress
from typing import Any, Self

A = 1
TTL_SECONDS = 5  # CoreDNS's for Services


class Names:
    """Name → addresses. A name without any is known, and has none."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self.port = int(self._socket.getsockname()[1])
        self._addresses: dict[str, tuple[str, ...]] = {}
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join()

    def set(self, name: str, addresses: list[str]) -> None:
        """Changes what a name stands for."""
        self._addresses[name] = tuple(addresses)

    def of(self, name: str) -> tuple[str, ...]:
        """What a name stands for now."""
        return self._addresses.get(name, ())

    def envoy_resolver(self) -> dict[str, Any]:
        """The part of Envoy's configuration that makes it ask here (typed_dns_resolver_config)."""
        resolver: dict[str, Any] = {
            "@type": "type.googleapis.com/envoy.extensions.network.dns_resolver.cares.v3.CaresDnsResolverConfig",
            "resolvers": [{"socket_address": {"address": "127.0.0.1", "port_value": self.port}}],
            "dns_resolver_options": {"no_default_search_domain": True},
        }
        return {"name": "envoy.network.dns_resolver.cares", "typed_config": resolver}

    def _serve(self) -> None:
        while True:
            try:
                query, sender = self._socket.recvfrom(512)
            except OSError:
                return
            if not query:
                return
            with suppress(OSError, IndexError, struct.error):
                self._socket.sendto(self._answer(query), sender)

    def _answer(self, query: bytes) -> bytes:
        """The answer to one question (RFC 1035): addresses for A, nothing for other types."""
        labels, position = [], 12
        while length := query[position]:
            labels.append(query[position + 1 : position + 1 + length].decode("ascii", "replace"))
            position += 1 + length
        question = query[12 : position + 5]
        (kind,) = struct.unpack("!H", query[position + 1 : position + 3])
        name = ".".join(labels).lower()
        known = name in self._addresses
        addresses = self._addresses.get(name, ()) if kind == A else ()
        flags = 0x8580 if known else 0x8583  # authoritative; NXDOMAIN for others
        answers = b"".join(
            struct.pack("!HHHIH", 0xC00C, A, 1, TTL_SECONDS, 4) + socket.inet_aton(address) for address in addresses
        )
        return query[:2] + struct.pack("!HHHHH", flags, 1, len(addresses), 0, 0) + question + answers


__all__ = ["Names"]
