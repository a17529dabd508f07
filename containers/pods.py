"""Runs the pods of rendered manifests in podman, as Kubernetes would, and raises on whatever it does not know.

Environment, mounts, ports, command, user and probes come from the manifest alone.
"""

import base64
import json
import re
import shutil
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import httpx
from grpc_health.v1 import health_pb2, health_pb2_grpc

from containers.engine import NETWORK, Podman
from helm.rendering import Object, Rendered

KNOWN_IN_POD = {
    *("serviceAccountName", "automountServiceAccountToken", "enableServiceLinks", "securityContext", "containers"),
    *("initContainers", "volumes", "terminationGracePeriodSeconds", "topologySpreadConstraints", "restartPolicy"),
}
KNOWN_IN_CONTAINER = {
    *("name", "image", "imagePullPolicy", "command", "args", "env", "envFrom", "volumeMounts", "ports", "resources"),
    *("securityContext", "startupProbe", "readinessProbe", "livenessProbe", "lifecycle"),
}
PROBES = ("startupProbe", "readinessProbe", "livenessProbe")


class UnknownField(Exception):
    """A manifest has a field that this reading of manifests does not know."""


@dataclass
class Pod:
    """One pod with one container, which is started again when it ends or does not live."""

    name: str
    labels: Object
    spec: Object
    aliases: list[str]
    claims: dict[str, Path]
    address: str = ""
    started: bool = False
    ready: bool = False
    restarts: int = 0
    failures: dict[str, int] = field(default_factory=dict)
    asked: Counter[str] = field(default_factory=Counter)  # how often each probe was answered, or not

    @property
    def container(self) -> Object:
        """Its only container."""
        [container] = self.spec["containers"]
        return dict(container)


class Pods:
    """The pods of a release."""

    def __init__(self, podman: Podman, rendered: Rendered) -> None:
        self._podman = podman
        self._rendered = rendered
        self._data = {(each["kind"], each["metadata"]["name"]): each for each in rendered.objects}
        self._stopping = threading.Event()
        self._probing: list[threading.Thread] = []
        self.pods: list[Pod] = []

    def start(self) -> None:
        """Starts every Deployment, StatefulSet and Job at once, as Kubernetes does."""
        for each in self._rendered.of("StatefulSet", "Deployment", "Job"):
            spec = each["spec"]
            for number in range(spec.get("replicas", 1)):
                self._add(each["metadata"]["name"], spec["template"], number, spec.get("volumeClaimTemplates", []))
        starting = [threading.Thread(target=self._start, args=(pod,)) for pod in self.pods]
        for thread in starting:
            thread.start()
        self._probing = starting

    def run_to_its_end(self, pod: Object) -> subprocess.CompletedProcess[str]:
        """Runs a Pod that ends by itself, such as a test's."""
        made = self._pod(pod["metadata"]["name"], pod, [])
        return self._podman.run(*self._command(made, made.container), check=False)

    def stop(self) -> None:
        """Stops probing and restarting."""
        self._stopping.set()
        for thread in self._probing:
            thread.join()

    def of(self, component: str) -> list[Pod]:
        """The pods of a component that go on."""
        return [
            pod
            for pod in self.pods
            if pod.labels["app.kubernetes.io/component"] == component and pod.spec.get("restartPolicy") != "OnFailure"
        ]

    # ------------------------------------------------------------------------------------------ what a pod is

    def _add(self, name: str, template: Object, number: int, claims: list[Object]) -> None:
        self.pods.append(self._pod(f"{name}-{number}", template, claims))

    def _pod(self, name: str, template: Object, claims: list[Object]) -> Pod:
        spec, labels = template["spec"], template["metadata"]["labels"]
        _refuse_unknown(spec, KNOWN_IN_POD)
        aliases = []
        for service in self._rendered.of("Service"):
            if service["spec"]["selector"].items() <= labels.items():
                aliases.append(service["metadata"]["name"])
                ports = {port["name"]: port["containerPort"] for port in spec["containers"][0]["ports"]}
                for port in service["spec"]["ports"]:
                    if ports[port["targetPort"]] != port["port"]:
                        raise UnknownField(f"{aliases[-1]}: there is nobody here who translates ports")
        folders = {}
        for claim in claims:
            folders[claim["metadata"]["name"]] = self._folder(f"claim-{name}-{claim['metadata']['name']}", spec)
        return Pod(name, labels, spec, aliases, folders)

    def _folder(self, name: str, spec: Object) -> Path:
        folder = self._podman.home / "volumes" / name
        folder.mkdir(parents=True, exist_ok=True)
        shutil.chown(folder, 0, spec["securityContext"]["fsGroup"])
        folder.chmod(0o2775)
        return folder

    def _volume(self, pod: Pod, volume: Object) -> Path:
        group = pod.spec["securityContext"]["fsGroup"]
        match volume:
            case {"secret": secret}:
                folder = self._folder(f"{pod.name}-{volume['name']}", pod.spec)
                data = self._data["Secret", secret["secretName"]]["data"]
                items = secret.get("items", [{"key": key, "path": key} for key in data])
                for item in items:
                    file = folder / item["path"]
                    file.write_bytes(base64.b64decode(data[item["key"]]))
                    file.chmod(secret["defaultMode"])
                    shutil.chown(file, 0, group)
                return folder
            case {"emptyDir": _}:
                return self._folder(f"{pod.name}-{volume['name']}", pod.spec)
            case {"persistentVolumeClaim": claim}:
                return self._folder(f"claim-{claim['claimName']}", pod.spec)
        raise UnknownField(f"volume {volume}")

    def _environment(self, container: Object) -> dict[str, str]:
        values: dict[str, str] = {}
        for source in container.get("envFrom", []):
            values |= self._data["ConfigMap", source["configMapRef"]["name"]]["data"]
        for each in container.get("env", []):
            if reference := each.get("valueFrom"):
                secret = self._data["Secret", reference["secretKeyRef"]["name"]]["data"]
                values[each["name"]] = base64.b64decode(secret[reference["secretKeyRef"]["key"]]).decode()
            else:
                values[each["name"]] = re.sub(r"\$\((\w+)\)", lambda found: values[found[1]], each["value"])
        return values

    def _command(self, pod: Pod, container: Object, *, name: str = "") -> list[str]:
        _refuse_unknown(container, KNOWN_IN_CONTAINER)
        context, inside = pod.spec["securityContext"], container["securityContext"]
        if inside != {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }:
            raise UnknownField(f"security context {inside}")
        volumes = {each["name"]: self._volume(pod, each) for each in pod.spec.get("volumes", [])} | pod.claims
        mounts = [
            f"--volume={volumes[each['name']]}:{each['mountPath']}{':ro' if each.get('readOnly') else ''}"
            for each in container.get("volumeMounts", [])
        ]
        environment = [f"--env={key}={value}" for key, value in self._environment(container).items()]
        memory = container["resources"]["limits"]["memory"].replace("i", "")
        shares = int(container["resources"]["requests"]["cpu"].removesuffix("m")) * 1024 // 1000
        entry = [f"--entrypoint={json.dumps(container['command'])}"] if "command" in container else []
        aliases = ",".join(f"alias={alias}" for alias in pod.aliases if name)
        return [
            *("run", f"--network={NETWORK}:{aliases}" if aliases else f"--network={NETWORK}"),
            *(("--detach", f"--name={name}") if name else ("--rm",)),
            *("--read-only", "--read-only-tmpfs=false", "--cap-drop=all", "--security-opt=no-new-privileges"),
            *(f"--user={context['runAsUser']}:{context['runAsGroup']}", f"--group-add={context['fsGroup']}"),
            *(f"--memory={memory}", f"--cpu-shares={shares}", "--shm-size=64m"),
            *(*mounts, *environment, *entry, container["image"], *container.get("args", [])),
        ]

    # ------------------------------------------------------------------------------------------ running and probing

    def _start(self, pod: Pod) -> None:
        for container in pod.spec.get("initContainers", []):
            self._podman.run(*self._command(pod, container))
        self._podman.run(*self._command(pod, pod.container, name=pod.name))
        self._watch(pod)

    def _watch(self, pod: Pod) -> None:
        """Asks the probes when they are due, and starts the container again when it has ended or does not live."""
        probes = {kind: pod.container[kind] for kind in PROBES if kind in pod.container}
        due = dict.fromkeys(probes, 0.0)
        while not self._stopping.wait(0.2):
            state = self._podman.inspect(pod.name)
            if not state["State"]["Running"]:
                pod.started = pod.ready = False
                if pod.spec.get("restartPolicy") == "OnFailure" and state["State"]["ExitCode"] == 0:
                    pod.ready = True
                    return
                self._restart(pod)
                continue
            joined = state["NetworkSettings"].get("Networks", {}).get(NETWORK, {})  # nothing while it is cut off
            pod.address = joined.get("IPAddress", "")
            if not probes and pod.spec.get("restartPolicy") != "OnFailure":
                pod.started = pod.ready = True
            for kind, probe in probes.items():
                if (kind == "startupProbe") == pod.started or time.monotonic() < due[kind]:
                    continue
                due[kind] = time.monotonic() + probe["periodSeconds"]
                pod.asked[kind] += 1
                self._judge(pod, kind, probe, self._answers(pod, probe))

    def _judge(self, pod: Pod, kind: str, probe: Object, answered: bool) -> None:
        pod.failures[kind] = 0 if answered else pod.failures.get(kind, 0) + 1
        too_often = pod.failures[kind] >= probe.get("failureThreshold", 3)
        match kind:
            case "startupProbe":
                pod.started = answered
            case "readinessProbe" if answered or too_often:
                pod.ready = answered
        if too_often and kind != "readinessProbe":
            self._restart(pod)

    def _restart(self, pod: Pod) -> None:
        pod.started = pod.ready = False
        pod.restarts += 1
        pod.failures.clear()
        self._podman.run("kill", "--signal=KILL", pod.name, check=False)
        time.sleep(min(pod.restarts, 5))
        self._podman.run("start", pod.name, check=False)

    def _answers(self, pod: Pod, probe: Object) -> bool:
        timeout, ports = probe.get("timeoutSeconds", 1), {each["name"]: each for each in pod.container["ports"]}

        def port(of: Mapping[str, Any]) -> int:
            return int(ports[of["port"]]["containerPort"]) if isinstance(of["port"], str) else int(of["port"])

        match probe:
            case {"grpc": asked}:
                with suppress(grpc.RpcError), grpc.insecure_channel(f"{pod.address}:{port(asked)}") as channel:
                    request = health_pb2.HealthCheckRequest(service=asked.get("service", ""))
                    answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=timeout)
                    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)
                return False
            case {"httpGet": asked}:
                with suppress(httpx.HTTPError):
                    url = f"{asked.get('scheme', 'HTTP').lower()}://{pod.address}:{port(asked)}{asked['path']}"
                    return httpx.get(url, timeout=timeout, verify=False).status_code < 400  # noqa: S501 - as a kubelet
                return False
            case {"tcpSocket": asked}:
                with socket.socket() as tried:
                    tried.settimeout(timeout)
                    return tried.connect_ex((pod.address, port(asked))) == 0
            case {"exec": asked}:
                with suppress(subprocess.TimeoutExpired):
                    return not self.execute(pod, *asked["command"], timeout=timeout).returncode
                return False
        raise UnknownField(f"probe {probe}")

    def execute(self, pod: Pod, *command: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """Runs a command in a pod's container."""
        return self._podman.run("exec", pod.name, *command, check=False, timeout=timeout)

    def end(self, pod: Pod) -> int:
        """Ends a pod as Kubernetes does: preStop, SIGTERM, and SIGKILL after the grace. Returns the exit status."""
        grace = pod.spec["terminationGracePeriodSeconds"]
        begun = time.monotonic()
        if hook := pod.container.get("lifecycle", {}).get("preStop"):
            self.execute(pod, *hook["exec"]["command"], timeout=grace)
        left = max(int(grace - (time.monotonic() - begun)), 1)
        self._podman.run("stop", f"--time={left}", pod.name)
        return int(self._podman.inspect(pod.name)["State"]["ExitCode"])


def _refuse_unknown(found: Object, known: set[str]) -> None:
    if unknown := found.keys() - known:
        raise UnknownField(", ".join(sorted(unknown)))


__all__ = ["Pod", "Pods", "UnknownField"]
