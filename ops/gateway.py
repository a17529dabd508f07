"""Fills in envoy/envoy.yaml."""

import base64
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from string import Template

from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2

import gotohotel
from gotohotel.rpc import access
from ops.services import part

FOLDER = Path(__file__).parents[1] / "envoy"
DESCRIPTORS = Path(gotohotel.__file__).parent / "descriptors.binpb"

# Envoy's own detail about the error, where it is useful.
ENVOYS_WORDS = "%LOCAL_REPLY_BODY%"

# The gateway's own answers: HTTP status → (google.rpc.Code, reason, message, seconds to wait before retrying).
LOCAL_REPLIES = {
    400: (code_pb2.INVALID_ARGUMENT, "INVALID_ARGUMENT", ENVOYS_WORDS, None),
    401: (code_pb2.UNAUTHENTICATED, "UNAUTHENTICATED", ENVOYS_WORDS, None),
    403: (code_pb2.UNAUTHENTICATED, "UNAUTHENTICATED", ENVOYS_WORDS, None),
    404: (code_pb2.NOT_FOUND, "NO_SUCH_PATH", "there is nothing at this path", None),
    408: (code_pb2.DEADLINE_EXCEEDED, "REQUEST_TIMEOUT", "the request did not come in time", None),
    413: (code_pb2.INVALID_ARGUMENT, "PAYLOAD_TOO_LARGE", "the body is too large", None),
    429: (code_pb2.RESOURCE_EXHAUSTED, "RATE_LIMITED", "too many requests at this moment", 1),
    431: (code_pb2.INVALID_ARGUMENT, "HEADERS_TOO_LARGE", "the headers are too large", None),
    503: (code_pb2.UNAVAILABLE, "UNAVAILABLE", "the service can't be reached now", 1),
    504: (code_pb2.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED", "the service did not answer in time", None),
}


CLUSTER = """\
    - name: {name}
      type: STRICT_DNS
      connect_timeout: 0.25s
      dns_lookup_family: V4_PREFERRED
      typed_extension_protocol_options:
        envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
          "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
          explicit_http_config:
            http2_protocol_options:
              connection_keepalive: {{interval: 10s, timeout: 3s}}
      circuit_breakers:
        thresholds: [{{max_connections: 64, max_pending_requests: 512, max_requests: 1024}}]
      load_assignment:
        cluster_name: {name}
        endpoints:
          - lb_endpoints:
              - endpoint: {{address: {{socket_address: {{address: {host}, port_value: {port}}}}}}}
"""


def render(values: Mapping[str, object], services: Mapping[str, tuple[str, int]]) -> str:
    """The configuration for these values and services. Raises KeyError for a missing value."""
    clusters = "".join(CLUSTER.format(name=name, host=host, port=port) for name, (host, port) in services.items())
    pay_host, pay_port = services["pay_svc"]
    rpcs = list(_public_rpcs(services))
    mappers = "\n".join(_mappers(http, *reply) for http, reply in LOCAL_REPLIES.items())
    return Template((FOLDER / "envoy.yaml").read_text()).substitute(
        values,
        DESCRIPTORS=DESCRIPTORS,
        LUA=FOLDER / "edge.lua",
        HEALTHZ_LUA=FOLDER / "healthz.lua",
        PUBLIC_CLUSTERS=clusters,
        ROUTES="\n".join(map(_route, rpcs)),
        ANYBODY_RULES="\n".join(_rule(path) for rpc in rpcs if rpc.needs_no_token for path in rpc.paths),
        TRANSCODED_SERVICES=json.dumps(sorted({rpc.service for rpc in rpcs})),
        LOCAL_REPLY_MAPPERS=mappers,
        PAY_HOST=pay_host,
        PAY_PORT=pay_port,
    )


@dataclass(frozen=True, slots=True)
class PublicRpc:
    """An RPC with a route, and the cluster that serves it."""

    cluster: str
    service: str  # full name
    name: str
    needs_no_token: bool
    json_paths: list[str]

    @property
    def paths(self) -> list[str]:
        """Its gRPC path and its JSON paths."""
        return [f"/{self.service}/{self.name}", *self.json_paths]


def _public_rpcs(services: Iterable[str]) -> Iterator[PublicRpc]:
    """The public RPCs that the compiled protos declare for these services."""
    clusters = {f"gotohotel.{part(name)}.v1": name for name in services}
    for file in FileDescriptorSet.FromString(DESCRIPTORS.read_bytes()).file:
        for service in file.service if file.package in clusters else ():
            for method in service.method:
                if access.is_public(method.options):
                    yield PublicRpc(
                        clusters[file.package],
                        f"{file.package}.{service.name}",
                        method.name,
                        access.ANYBODY in access.allowed_roles(method.options),
                        [binding.path for binding in access.bindings(method.options)],
                    )


def _route(rpc: PublicRpc) -> str:
    route = {
        "name": rpc.name,
        "match": {"path": rpc.paths[0]},
        "route": {
            "cluster": rpc.cluster,
            "timeout": "12s",
            "max_stream_duration": {"grpc_timeout_header_max": "10s"},
        },
    }
    return f"                        - {json.dumps(route)}"


def _rule(path: str) -> str:
    """The JWT rule of a path that needs no token; {field} matches any text without a slash."""
    regex = re.sub(r"\\{\w+\\}", "[^/]+", re.escape(path))
    return f"                        - {json.dumps({'match': {'safe_regex': {'regex': regex}}})}"


def _mappers(http: int, code: int, reason: str, message: str, wait: int | None) -> str:
    """Error bodies: gRPC calls get the details in a header, all others a JSON body."""
    details: list[Message] = [error_details_pb2.ErrorInfo(reason=reason, domain="gotohotel")]
    as_json: list[object] = [
        {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": reason, "domain": "gotohotel"}
    ]
    if wait is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromSeconds(wait)
        details.append(retry)
        as_json.append({"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": f"{wait}s"})
    status = status_pb2.Status(code=code, message=reason)
    for detail in details:
        status.details.add().Pack(detail)
    encoded = base64.b64encode(status.SerializeToString()).decode().rstrip("=")
    as_body: dict[str, object] = {
        "filter": _is_no_health_answer_with(http) if http == 503 else _has_status(http),
        "body_format_override": {
            "json_format": {"code": code, "message": message, "details": as_json},
            "content_type": "application/json",
        },
    }
    if message == ENVOYS_WORDS and http == 400:  # envoy/edge.lua rewrites it
        as_body["headers_to_add"] = [{"header": {"key": "x-gotohotel-refused", "value": "1"}}]
    as_header: dict[str, object] = {
        "filter": _is_grpc_with(http),
        "headers_to_add": [{"header": {"key": "grpc-status-details-bin", "value": encoded}}],
    }
    return "\n".join(f"                    - {json.dumps(mapper)}" for mapper in (as_header, as_body))


def _has_status(http: int) -> dict[str, object]:
    value = {"default_value": http, "runtime_key": "local_reply.status"}
    return {"status_code_filter": {"comparison": {"op": "EQ", "value": value}}}


def _is_no_health_answer_with(http: int) -> dict[str, object]:
    """Excludes answers whose body healthz.lua has written."""
    healthz = {"name": ":path", "string_match": {"prefix": "/healthz"}, "invert_match": True}
    return {"and_filter": {"filters": [_has_status(http), {"header_filter": {"header": healthz}}]}}


def _is_grpc_with(http: int) -> dict[str, object]:
    native = {"name": "x-gotohotel-native-grpc", "present_match": True}
    return {"and_filter": {"filters": [_has_status(http), {"header_filter": {"header": native}}]}}
