"""The standard health service (grpc.health.v1): on the service's own port, and alone on a port without TLS."""

import socket

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2
from grpc_health.v1._async import HealthServicer
from grpc_health.v1.health_pb2_grpc import add_HealthServicer_to_server

NAME = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
# Names for which a check asks about something else than whether calls should be sent here.
DATABASE = "database"  # whether the database answers
STARTED = "started"  # whether the start is complete
LIVE = "live"  # whether the event loop runs: who answers, answers SERVING

# No limit of calls on the port of its own: who begins calls and never ends them would use it up, and the service would
# be started again. Such calls end with their connection.
ALONE_OPTIONS = [
    ("grpc.so_reuseport", 0),
    ("grpc.max_connection_age_ms", 30_000),
    ("grpc.max_connection_age_grace_ms", 5_000),
]


class Health:
    """A server's answers to health checks."""

    def __init__(self) -> None:
        self._servicer = HealthServicer()
        self._alone: grpc.aio.Server | None = None

    async def add_to(self, server: grpc.aio.Server) -> None:
        """Answers on this server too."""
        add_HealthServicer_to_server(self._servicer, server)
        await self._set(LIVE, True)

    async def open_port(self, address: str) -> None:
        """Answers at an address without TLS: Kubernetes' probes have no certificate. Raises OSError if it is taken."""
        refuse_taken(address)
        self._alone = grpc.aio.server(options=ALONE_OPTIONS)
        await self.add_to(self._alone)
        self._alone.add_insecure_port(address)
        await self._alone.start()

    async def note_started(self) -> None:
        """The start is complete."""
        await self._set(STARTED, True)

    async def set_serving(self, names: list[str], serving: bool, *, has_database: bool) -> None:
        """Whether calls of the services with these names should be sent here, and whether the database answers."""
        for name in ("", *names):
            await self._set(name, serving and has_database)
        await self._set(DATABASE, has_database)

    async def close(self) -> None:
        """Closes the port that is for health checks alone."""
        if self._alone is not None:
            await self._alone.stop(None)

    async def _set(self, name: str, yes: bool) -> None:
        statuses = health_pb2.HealthCheckResponse
        await self._servicer.set(name, statuses.SERVING if yes else statuses.NOT_SERVING)


def refuse_taken(address: str) -> None:
    """Raises OSError if a port is in use; gRPC itself would log a line of its own about it."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        host, port = address.rsplit(":", 1)
        try:
            probe.bind((host, int(port)))
        except OSError as error:
            raise OSError(f"can't listen on {address}: {error.strerror}") from error
