"""A small Kubernetes API server: Helm installs, upgrades, tests, rolls back and uninstalls against it.

Long because it answers as the API server does and reports as the controllers do.
"""

import base64
import copy
import json
import re
import socket
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple, Self
from urllib.parse import parse_qsl, urlsplit

Object = dict[str, Any]
Request = tuple[str, str, str]  # verb, kind, name


class Kind(NamedTuple):
    """A kind of objects."""

    version: str
    name: str

    @property
    def plural(self) -> str:
        """The kind's name in paths."""
        return re.sub("y$", "ie", self.name.lower()) + ("es" if self.name.endswith("s") else "s")

    @property
    def prefix(self) -> str:
        """The path of the kind's API version."""
        return ("apis/" if "/" in self.version else "api/") + self.version


KINDS = [
    Kind(version, name)
    for version, names in {
        "v1": "Namespace Pod Service ServiceAccount ConfigMap Secret PersistentVolumeClaim",
        "apps/v1": "Deployment StatefulSet ReplicaSet",
        "batch/v1": "Job",
        "autoscaling/v2": "HorizontalPodAutoscaler",
        "policy/v1": "PodDisruptionBudget",
        "networking.k8s.io/v1": "NetworkPolicy Ingress",
        "gateway.networking.k8s.io/v1": "HTTPRoute",
        "monitoring.coreos.com/v1": "ServiceMonitor",
        "cert-manager.io/v1": "Certificate Issuer",
    }.items()
    for name in names.split()
]
DEFAULTS: dict[str, Object] = {
    "Deployment": {"spec": {"replicas": 1}},
    "PersistentVolumeClaim": {"spec": {"storageClassName": "standard", "volumeMode": "Filesystem"}},
    "ReplicaSet": {"spec": {"replicas": 1}},
    "Secret": {"type": "Opaque"},
    "StatefulSet": {"spec": {"replicas": 1, "podManagementPolicy": "OrderedReady"}},
}
IMMUTABLE = {
    "Deployment": ["spec.selector"],
    "Job": ["spec.selector", "spec.template"],
    "PersistentVolumeClaim": ["spec.accessModes", "spec.storageClassName", "spec.volumeMode"],
    "ReplicaSet": ["spec.selector"],
    "Secret": ["type"],
    "Service": ["spec.clusterIP"],
    "StatefulSet": ["spec.podManagementPolicy", "spec.selector", "spec.serviceName", "spec.volumeClaimTemplates"],
}
VERBS = {"POST": "create", "PATCH": "apply", "DELETE": "delete"}
PATH = re.compile(r"/(api/v1|apis/[^/]+/[^/]+)(?:/namespaces/([^/]+))?/([a-z]+)(?:/([^/]+))?")


class Refused(Exception):
    """A request that is not done, with the HTTP status and what Kubernetes calls the reason."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.code, self.reason = code, reason


class ApiServer:
    """Serves on a free port of loopback during a with block; a cluster with the namespace default.

    `log` holds every request as verb (get, list, watch, create, apply, delete), kind and name; what is not of objects
    has its path as kind. `objects` holds what there is, by kind and name. An object whose kind and name is in `failing`
    fails when it changes next: a Job and a Pod end badly, a Deployment exceeds its deadline, a StatefulSet, a
    PersistentVolumeClaim, a Certificate and an Issuer never become ready.
    """

    def __init__(self, *, version: str = "1.29") -> None:
        self.version = version
        self.log: list[Request] = []
        self.objects: dict[tuple[str, str], Object] = {}
        self.failing: set[tuple[str, str]] = set()
        self._sent: dict[tuple[str, str], Object] = {}
        self._events: list[Object] = []  # resource version n is the state after n of them
        self._changed = threading.Condition()
        self._is_closing = False
        with self._changed:
            self._store({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "default"}})

    def __enter__(self) -> Self:
        self._server = _Server(self)
        self._thread = threading.Thread(target=self._server.serve_forever, args=[0.02])
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def url(self) -> str:
        """Where it serves."""
        return f"http://127.0.0.1:{self._server.server_port}"

    @property
    def kubeconfig(self) -> str:
        """The text of a kubeconfig that leads here."""
        parts = {"clusters": {"cluster": {"server": self.url}}, "contexts": {"context": {"cluster": "fake"}}}
        lists = {name: [{"name": "fake", **part}] for name, part in parts.items()}
        return json.dumps({"apiVersion": "v1", "kind": "Config", "current-context": "fake", **lists})

    @property
    def changes(self) -> list[Request]:
        """What `log` holds of requests to create, apply and delete, refused ones too."""
        return [request for request in self.log if request[0] in VERBS.values()]

    def answer(self, method: str, path: str, query: dict[str, str], body: Object) -> Object | Iterator[Object]:
        """The answer to a request: an object, or the events of a watch."""
        found = PATH.fullmatch(path)
        prefix, namespace, plural, name = found.groups() if found else [None] * 4
        kind = next((kind for kind in KINDS if (kind.prefix, kind.plural) == (prefix, plural)), None)
        with self._changed:
            if kind is None:
                self.log.append((method.lower(), path, ""))
                return _discovered(path.strip("/"), self.version)
            if method != "GET":
                name = name or _at(body, "metadata.name")
                self.log.append((VERBS[method], kind.name, name))
                return self._change(method, kind, namespace, name, body)
            if name:
                self.log.append(("get", kind.name, name))
                return self._live(kind, namespace, name)
            return self._listed(kind, query, _filter(kind, namespace, query))

    def _listed(self, kind: Kind, query: dict[str, str], chosen: Callable[[Object], bool]) -> Object | Iterator[Object]:
        is_watch = query.get("watch") in ("true", "1")
        self.log.append(("watch" if is_watch else "list", kind.name, ""))
        items = [each for each in self.objects.values() if chosen(each)]
        now = {"resourceVersion": str(len(self._events))}
        if not is_watch:
            return {"apiVersion": kind.version, "kind": f"{kind.name}List", "metadata": now, "items": items}
        since = query.get("resourceVersion") or "0"
        if query.get("sendInitialEvents") != "true" and since != "0":
            return self._watch([], int(since), chosen)
        first = [{"type": "ADDED", "object": each} for each in items]
        if query.get("sendInitialEvents") == "true":
            ended = {**now, "annotations": {"k8s.io/initial-events-end": "true"}}
            mark = {"apiVersion": kind.version, "kind": kind.name, "metadata": ended}
            first.append({"type": "BOOKMARK", "object": mark})
        return self._watch(first, len(self._events), chosen)

    def _watch(self, first: list[Object], seen: int, chosen: Callable[[Object], bool]) -> Iterator[Object]:
        yield from first
        while True:
            with self._changed:
                while len(self._events) == seen and not self._is_closing:
                    self._changed.wait()
                if self._is_closing:
                    return
                events, seen = self._events[seen:], len(self._events)
            yield from (event for event in events if chosen(event["object"]))

    def _live(self, kind: Kind, namespace: str | None, name: str) -> Object:
        live = self.objects.get((kind.name, name))
        if live is None or live["metadata"].get("namespace") != namespace:
            raise Refused(404, "NotFound", f'{kind.plural} "{name}" not found')
        return live

    def _change(self, method: str, kind: Kind, namespace: str | None, name: str, body: Object) -> Object:
        key = (kind.name, name)
        if method == "DELETE":
            self._tell("DELETED", self._live(kind, namespace, name))
            del self.objects[key]
            self._sent.pop(key, None)
            return {"apiVersion": "v1", "kind": "Status", "status": "Success"}
        live = self.objects.get(key, {})
        if method == "POST" and live:
            raise Refused(409, "AlreadyExists", f'{kind.plural} "{name}" already exists')
        if namespace and ("Namespace", namespace) not in self.objects:
            raise Refused(404, "NotFound", f'namespaces "{namespace}" not found')
        sent = _as_sent(body, namespace)
        if (sent["apiVersion"], sent["kind"], sent["metadata"]["name"]) != (*kind, name):
            raise Refused(400, "BadRequest", f"the object is not the {kind.version} {kind.name} {name}")
        new: Object = _merged(DEFAULTS.get(kind.name, {}), None, _merged(live, self._sent.get(key), sent))
        _check(new, live)
        if new == live:
            return live
        self._sent[key] = sent
        return self._store(new)

    def _store(self, new: Object) -> Object:
        """Stores an object as the API server completes it and its controller reports on it."""
        new, key = copy.deepcopy(new), (new["kind"], new["metadata"]["name"])
        live, version = self.objects.get(key, {}), str(len(self._events) + 1)
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        new["metadata"] = {"uid": str(uuid.uuid4()), "creationTimestamp": now, **new["metadata"]}
        new["metadata"]["resourceVersion"] = version
        if "spec" in new and new["spec"] != live.get("spec"):
            new["metadata"]["generation"] = new["metadata"].get("generation", 0) + 1
        if new["kind"] == "Service":
            new["spec"].setdefault("clusterIP", f"10.96.0.{version}")
        if status := _reported(new, fails=key in self.failing):
            new["status"] = status
        self.objects[key] = new
        self._tell("MODIFIED" if live else "ADDED", new)
        return new

    def _tell(self, what: str, subject: Object) -> None:
        subject = {**subject, "metadata": {**subject["metadata"], "resourceVersion": str(len(self._events) + 1)}}
        self._events.append({"type": what, "object": subject})
        self._changed.notify_all()


class _Server(ThreadingHTTPServer):
    daemon_threads = False  # server_close waits for them
    request_queue_size = 100

    def __init__(self, api: ApiServer) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.api = api
        self._open: set[Any] = set()

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def server_close(self) -> None:
        for request in self._open.copy():
            with suppress(OSError):  # it has ended meanwhile
                request.shutdown(socket.SHUT_RDWR)
        super().server_close()


class _Handler(BaseHTTPRequestHandler):
    """Takes one request of a connection, as HTTP 1.0 has it."""

    server: _Server
    disable_nagle_algorithm = True

    def _answer(self) -> None:
        code, url = 200, urlsplit(self.path)
        content = self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"{}"
        try:
            if self.headers["Content-Type"] not in (None, "application/json", "application/apply-patch+yaml"):
                raise Refused(415, "UnsupportedMediaType", "neither JSON nor server-side apply")
            body = json.loads(content, object_hook=_without_nulls)
            answer = self.server.api.answer(self.command, url.path, dict(parse_qsl(url.query)), body)
        except Refused as refused:
            code, status = refused.code, {"apiVersion": "v1", "kind": "Status", "status": "Failure"}
            answer = {**status, "code": code, "reason": refused.reason, "message": str(refused)}
        with suppress(BrokenPipeError, ConnectionResetError):  # the client has seen enough
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            for part in answer if isinstance(answer, Iterator) else [answer]:
                self.wfile.write(json.dumps(part).encode() + b"\n")

    do_GET = do_POST = do_PATCH = do_DELETE = _answer  # noqa: N815 - http.server's names

    def log_message(self, *_: object, **__: object) -> None:
        """Writes nothing."""


def _without_nulls(sent: Object) -> Object:
    return {key: value for key, value in sent.items() if value is not None}


def _at(inside: Object, path: str) -> Any:
    found: Any = inside
    for key in path.split("."):
        found = found.get(key) if isinstance(found, dict) else None
    return found


def _filter(kind: Kind, namespace: str | None, query: dict[str, str]) -> Callable[[Object], bool]:
    def wanted(name: str) -> dict[str, str]:
        return dict(re.split("==?", part) for part in query.get(name, "").split(",") if part)

    labels, fields = wanted("labelSelector"), wanted("fieldSelector")
    return lambda each: (
        each["kind"] == kind.name
        and namespace in (None, each["metadata"].get("namespace"))
        and labels.items() <= each["metadata"].get("labels", {}).items()
        and all(_at(each, path) == value for path, value in fields.items())
    )


def _as_sent(body: Object, namespace: str | None) -> Object:
    """An object as it is stored, without what is the server's to say."""
    own = ("uid", "creationTimestamp", "generation", "resourceVersion", "managedFields")
    metadata = {key: value for key, value in body["metadata"].items() if key not in own}
    sent = {key: value for key, value in body.items() if key not in ("status", "stringData")}
    sent["metadata"] = metadata | ({"namespace": namespace} if namespace else {})
    if texts := body.get("stringData"):
        sent["data"] = sent.get("data", {}) | {key: base64.b64encode(texts[key].encode()).decode() for key in texts}
    return sent


def _merged(live: Any, last: Any, sent: Any) -> Any:
    """What is sent, and of the live fields those that were not sent the last time either."""
    if not (isinstance(live, dict) and isinstance(sent, dict)):
        return sent
    last = last if isinstance(last, dict) else {}
    kept = {key: live[key] for key in live if key in sent or key not in last}
    return kept | {key: _merged(live.get(key), last.get(key), value) for key, value in sent.items()}


def _check(new: Object, live: Object) -> None:
    kind, name = new["kind"], new["metadata"]["name"]
    paths = ["metadata.namespace", *IMMUTABLE.get(kind, []), *(["data", "immutable"] if live.get("immutable") else [])]
    changed = [path for path in paths if live and _at(new, path) != _at(live, path)]
    faults = [f"{path}: Invalid value: field is immutable" for path in changed]
    wanted, labels = _at(new, "spec.selector.matchLabels") or {}, _at(new, "spec.template.metadata.labels") or {}
    if _at(new, "spec.template") and not wanted.items() <= labels.items():
        faults.append("spec.template.metadata.labels: Invalid value: `selector` does not match template `labels`")
    if faults:
        raise Refused(422, "Invalid", f'{kind} "{name}" is invalid: {", ".join(faults)}')


def _reported(new: Object, *, fails: bool) -> Object:
    """The status of an object that has become ready, or has failed, at once."""
    spec, metadata = new.get("spec", {}), new["metadata"]
    now, seen = metadata["creationTimestamp"], {"observedGeneration": metadata.get("generation")}

    def conditions(reason: str = "Reported", **states: bool) -> Object:
        rest = {"reason": reason, "message": "", "lastTransitionTime": now}
        return {"conditions": [{"type": name, "status": str(state), **rest} for name, state in states.items()]}

    match new["kind"]:
        case "Namespace":
            return {"phase": "Active"}
        case "Pod":
            good = "Succeeded" if "helm.sh/hook" in metadata.get("annotations", {}) else "Running"
            return {"phase": "Failed" if fails else good, **conditions(Ready=good == "Running" and not fails)}
        case "Service" if spec.get("type") == "LoadBalancer":
            return {"loadBalancer": {"ingress": [{"ip": "192.0.2.1"}]}}
        case "PersistentVolumeClaim":
            return {"phase": "Pending" if fails else "Bound"}
        case "Deployment" | "ReplicaSet" | "StatefulSet":
            running = dict.fromkeys(("replicas", "currentReplicas", "updatedReplicas"), spec["replicas"])
            ready = dict.fromkeys(("readyReplicas", "availableReplicas"), 0 if fails else spec["replicas"])
            reason = "ProgressDeadlineExceeded" if fails else "NewReplicaSetAvailable"
            return {**seen, **running, **ready, **conditions(reason, Available=not fails, Progressing=not fails)}
        case "Job" if fails:
            return {"startTime": now, "failed": 1, **conditions("BackoffLimitExceeded", Failed=True)}
        case "Job":
            return {"startTime": now, "completionTime": now, "succeeded": 1, **conditions(Complete=True)}
        case "HorizontalPodAutoscaler":
            replicas = {name: spec.get("minReplicas", 1) for name in ("currentReplicas", "desiredReplicas")}
            return {**replicas, **conditions(AbleToScale=True, ScalingActive=True)}
        case "PodDisruptionBudget":
            return {**seen, "currentHealthy": 1, "desiredHealthy": 0, "expectedPods": 1, "disruptionsAllowed": 1}
        case "HTTPRoute":
            return {"parents": [conditions(Accepted=True, ResolvedRefs=True)]}
        case "Certificate" | "Issuer":
            return conditions(Ready=not fails)
    return {}


def _discovered(path: str, version: str) -> Object:
    """What the server says of itself and of its kinds."""
    versions = {kind.prefix: kind.version for kind in KINDS}
    major, minor = version.split(".")
    match path.split("/"):
        case ["version"]:
            return {"major": major, "minor": minor, "gitVersion": f"v{version}.0"}
        case ["api"]:
            return {"kind": "APIVersions", "versions": ["v1"]}
        case ["apis"]:
            pairs = [{"groupVersion": each, "version": each.split("/")[1]} for each in versions.values() if "/" in each]
            groups = [{"name": pair["groupVersion"].split("/")[0], "versions": [pair]} for pair in pairs]
            return {"apiVersion": "v1", "kind": "APIGroupList", "groups": groups}
        case ["openapi", "v3"]:
            return {"paths": {prefix: {"serverRelativeURL": "/openapi/v3/all"} for prefix in versions}}
        case ["openapi", "v3", "all"]:
            patches = {f"/{kind.prefix}/{kind.plural}/{{name}}": {"patch": _patch(kind)} for kind in KINDS}
            return {"openapi": "3.0.0", "info": {"title": "Kubernetes", "version": version}, "paths": patches}
        case _ if path in versions:
            verbs = ["create", "delete", "get", "list", "patch", "watch"]
            resources = [
                {"name": kind.plural, "kind": kind.name, "namespaced": kind.name != "Namespace", "verbs": verbs}
                for kind in KINDS
                if kind.prefix == path
            ]
            return {"kind": "APIResourceList", "groupVersion": versions[path], "resources": resources}
    raise Refused(404, "NotFound", "the server could not find the requested resource")


def _patch(kind: Kind) -> Object:
    """The description of a patch that says that the server validates what it is sent: so Helm does not."""
    group, _, number = kind.version.rpartition("/")
    parameters = [{"name": name, "in": "query", "schema": {"type": "string"}} for name in ("dryRun", "fieldValidation")]
    meaning = {"group": group, "version": number, "kind": kind.name}
    return {"parameters": parameters, "responses": {}, "x-kubernetes-group-version-kind": meaning}
