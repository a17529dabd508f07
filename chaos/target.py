"""What is broken: a stack with connections that can be cut, and one or several replicas of each service."""

import copy
import dataclasses
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import yaml

from chaos.links import Links
from chaos.replicas import Replicas
from ops import ports
from ops.configuration import PROCESSES
from ops.errors import StackError
from ops.services import SERVICES
from ops.stack import Stack

# A guest of the load stands for many: what one guest may hold or try is limited elsewhere, and tested there.
WITHOUT_LIMITS = {
    "ORDER_MAX_UNPAID_ORDERS": "10000",
    "ORDER_MAX_UNPAID_NIGHTS": "100000",
    "ORDER_MAX_IN_PROGRESS": "10000",
    "PAY_MAX_DECLINES_OF_AN_ORDER": "10000",
    "PAY_MAX_DECLINES_OF_A_GUEST": "10000",
}
POOL_SIZE = 10  # of all replicas of a service: the server's connections are for one and a scenario's further ones


@dataclasses.dataclass(frozen=True, slots=True)
class Target:
    """What is broken: a stack, its connections, and the further replicas of its services."""

    stack: Stack
    links: Links
    replicas: Replicas


@contextmanager
def running(*, replicas: int) -> Iterator[Target]:
    """A stack of its own with this many replicas of each service, all of whose connections go through links;
    everything is deleted afterwards.
    """
    home = Path(tempfile.mkdtemp(prefix="gotohotel-chaos-"))
    with ExitStack() as resources:
        resources.callback(shutil.rmtree, home)
        plain = Stack.on_free_ports(home)
        further = {PROCESSES[name]: ports.reserve(replicas - 1) for name in SERVICES}
        links = Links(plain.ports, further)
        stack = dataclasses.replace(plain, detours=links.open())
        resources.callback(links.close)
        resources.callback(stack.down)
        # Messages go to a provider of the stack's own, whose log the audit counts.
        pools = {f"{PROCESSES[name].upper()}_POOL_SIZE": str(POOL_SIZE // replicas) for name in SERVICES}
        for name, value in {**WITHOUT_LIMITS, **pools, "KAKAO": "fake"}.items():
            os.environ[name] = value
            resources.callback(os.environ.pop, name)
        stack.up()
        target = Target(stack, links, Replicas(stack, further))
        if replicas > 1:
            resources.callback(target.replicas.close)
            target.replicas.open()
            _spread_calls(stack, links)
        yield target


def _spread_calls(stack: Stack, links: Links) -> None:
    """Makes the gateway spread its calls over all replicas of a service."""
    file = stack.home / "envoy.yaml"
    configuration = yaml.safe_load(file.read_text())
    spread = set()
    for cluster in configuration["static_resources"]["clusters"]:
        [locality] = cluster["load_assignment"]["endpoints"]
        [known] = locality["lb_endpoints"]
        port = known["endpoint"]["address"].get("socket_address", {}).get("port_value")
        for each in links.of(port)[1:]:
            further = copy.deepcopy(known)
            further["endpoint"]["address"]["socket_address"]["port_value"] = each
            locality["lb_endpoints"].append(further)
            spread.add(cluster["name"])
    if missing := {*SERVICES, "pay_svc_egress"} - spread:
        raise StackError(f"The gateway's configuration has no cluster {', '.join(sorted(missing))}.")
    stack.stop("envoy")
    file.write_text(json.dumps(configuration))
    stack.start("envoy")
