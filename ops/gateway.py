"""Fills in envoy/envoy.yaml."""

import base64
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from string import Template

from google.protobuf import descriptor_pool
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2

import gotohotel
from gotohotel.rpc import access
from gotohotel.rpc.tls import AUTHORITY, CERTIFICATE, DOMAIN, KEY
from ops.services import SERVICES, part

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
    426: (code_pb2.INVALID_ARGUMENT, "HTTP_VERSION", "HTTP/1.1 or HTTP/2 is required", None),
    429: (code_pb2.RESOURCE_EXHAUSTED, "RATE_LIMITED", "too many requests at this moment", 1),
    431: (code_pb2.INVALID_ARGUMENT, "HEADERS_TOO_LARGE", "the headers are too large", None),
    501: (code_pb2.UNIMPLEMENTED, "UNSUPPORTED_ENCODING", "the transfer encoding is not supported", None),
    503: (code_pb2.UNAVAILABLE, "UNAVAILABLE", "the service can't be reached now", 1),
    504: (code_pb2.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED", "the service did not answer in time", None),
}


# How many calls may be at a service at once.
MAX_CALLS, MAX_ANONYMOUS_CALLS = 1024, 64
ANONYMOUS = "_anonymous"  # suffix of the cluster for calls without a token

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
      transport_socket:
        name: envoy.transport_sockets.tls
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext
          common_tls_context: {tls}
      circuit_breakers:
        thresholds: [{{max_connections: 64, max_pending_requests: {max_requests}, max_requests: {max_requests}}}]
      load_assignment:
        cluster_name: {name}
        endpoints:
          - lb_endpoints:
              - endpoint: {{address: {{socket_address: {{address: {host}, port_value: {port}}}}}}}
"""


def render(values: Mapping[str, object], services: Mapping[str, tuple[str, int]]) -> str:
    """The configuration for these values and services. Raises KeyError for a missing value."""
    rpcs = list(_public_rpcs(services))
    clusters = "".join(
        CLUSTER.format(
            name=name + suffix,
            host=host,
            port=port,
            max_requests=max_requests,
            tls=_tls(values["GATEWAY_TLS"], peers=[part(name)]),
        )
        for name, (host, port) in services.items()
        for suffix, max_requests in (("", MAX_CALLS), (ANONYMOUS, MAX_ANONYMOUS_CALLS))
        if not suffix or any(rpc.cluster == name and rpc.needs_no_token for rpc in rpcs)
    )
    pay_host, pay_port = services["pay_svc"]
    callers = [part(name) for name, service in SERVICES.items() if service.calls_pay]
    mappers = "\n".join(_mappers(http, *reply) for http, reply in LOCAL_REPLIES.items())
    return Template((FOLDER / "envoy.yaml").read_text()).substitute(
        values,
        DESCRIPTORS=DESCRIPTORS,
        EDGE_LUA=_script("refusal.lua", "edge.lua"),
        BODY_LUA=_script("refusal.lua", "body.lua", tables=_contract(rpcs)),
        HEALTHZ_LUA=FOLDER / "healthz.lua",
        PUBLIC_CLUSTERS=clusters,
        ROUTES="\n".join(map(_route, rpcs)),
        ANYBODY_RULES="\n".join(_rule(path) for rpc in rpcs if rpc.needs_no_token for path in rpc.paths),
        TRANSCODED_SERVICES=json.dumps(sorted({rpc.service for rpc in rpcs})),
        LOCAL_REPLY_MAPPERS=mappers,
        PAY_HOST=pay_host,
        PAY_PORT=pay_port,
        EGRESS_SERVER_TLS=_tls(values["EGRESS_TLS"], peers=callers),
        EGRESS_CLIENT_TLS=_tls(values["EGRESS_TLS"], peers=["pay"]),
    )


def _tls(folder: object, *, peers: Iterable[str]) -> str:
    """The settings of one end of a mutual TLS connection: its own certificate, and the parts that it accepts."""
    names = [{"san_type": "DNS", "matcher": {"exact": f"{peer}.{DOMAIN}"}} for peer in peers]
    certificate = {
        "certificate_chain": {"filename": f"{folder}/{CERTIFICATE}"},
        "private_key": {"filename": f"{folder}/{KEY}"},
    }
    trusted = {"trusted_ca": {"filename": f"{folder}/{AUTHORITY}"}, "match_typed_subject_alt_names": names}
    return json.dumps({"tls_certificates": [certificate], "validation_context": trusted, "alpn_protocols": ["h2"]})


@dataclass(frozen=True, slots=True)
class PublicRpc:
    """An RPC with a route, and the cluster that serves it."""

    cluster: str
    service: str  # full name
    name: str
    needs_no_token: bool
    bindings: list[access.Binding]
    request: str  # full name of the message

    @property
    def paths(self) -> list[str]:
        """Its gRPC path and its JSON paths."""
        return [f"/{self.service}/{self.name}", *(binding.path for binding in self.bindings)]


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
                        list(access.bindings(method.options)),
                        method.input_type.removeprefix("."),
                    )


def _route(rpc: PublicRpc) -> str:
    route = {
        "name": rpc.name,
        "match": {"path": rpc.paths[0]},
        "route": {
            # Calls without a token have few places of their own: they never use up those of the others.
            "cluster": rpc.cluster + (ANONYMOUS if rpc.needs_no_token else ""),
            "timeout": "12s",
            "max_stream_duration": {"grpc_timeout_header_max": "10s"},
        },
    }
    return f"                        - {json.dumps(route)}"


def _script(*files: str, tables: str = "") -> str:
    """Lua files and generated tables as one script, quoted for YAML."""
    return json.dumps(tables + "\n".join((FOLDER / file).read_text() for file in files))


def _contract(rpcs: Iterable[PublicRpc]) -> str:
    """The tables CALLS and FIELDS of envoy/body.lua."""
    calls, wanted = [], []
    for rpc in rpcs:
        for binding in rpc.bindings:
            names = re.findall(r"{(\w+)}", binding.path)
            pattern = re.sub(r"{\w+}", "([^/:]+)", re.sub(r"[-.:]", r"%\g<0>", binding.path))
            body = rpc.request if binding.has_body else False
            calls.append([binding.verb.upper(), f"^{pattern}$", body, [_json_name(name) for name in names]])
            wanted += [rpc.request] if binding.has_body else []
    fields: dict[str, dict[str, list[object]]] = {}
    pool = descriptor_pool.DescriptorPool()
    for file in FileDescriptorSet.FromString(DESCRIPTORS.read_bytes()).file:
        pool.Add(file)
    while wanted:
        name = wanted.pop()
        if name not in fields:
            fields[name] = {}
            for field in pool.FindMessageTypeByName(name).fields:
                kind = field.message_type.full_name if field.message_type else ""
                described: list[object] = [field.json_name, kind or False]
                fields[name].update({field.json_name: described, field.name: described})
                wanted += [kind] if kind else []
    return f"local CALLS = {_lua(calls)}\nlocal FIELDS = {_lua(fields)}\n"


def _json_name(name: str) -> str:
    return re.sub(r"_(\w)", lambda found: found[1].upper(), name)


def _lua(value: object) -> str:
    """A value as a Lua literal."""
    match value:
        case list():
            return f"{{{', '.join(map(_lua, value))}}}"
        case dict():
            return f"{{{', '.join(f'[{_lua(key)}] = {_lua(each)}' for key, each in value.items())}}}"
        case _:
            return json.dumps(value)


def _rule(path: str) -> str:
    """The JWT rule of a path that needs no token; {field} matches any text without a slash."""
    regex = re.sub(r"\\{\w+\\}", "[^/]+", re.escape(path))
    return f"                        - {json.dumps({'match': {'safe_regex': {'regex': regex}}})}"


def _mappers(http: int, code: int, reason: str, message: str, wait: int | None) -> str:
    """Error bodies: gRPC calls get the details in a header, all others a JSON body."""
    metadata = {"retryable": str(wait is not None or code == code_pb2.DEADLINE_EXCEEDED).lower()}
    info = error_details_pb2.ErrorInfo(reason=reason, domain="gotohotel", metadata=metadata)
    details: list[Message] = [info]
    as_json: list[object] = [{"@type": "type.googleapis.com/google.rpc.ErrorInfo", **MessageToDict(info)}]
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
        "filter": {"and_filter": {"filters": [_has_status(http), NOT_BY_OUR_SCRIPTS]}},
        "body_format_override": {
            "json_format": {"code": code, "message": message, "details": as_json},
            "content_type": "application/json",
        },
    }
    if message == ENVOYS_WORDS and http == 400:  # envoy/edge.lua rewrites it
        as_body["headers_to_add"] = [{"header": {"key": "x-gotohotel-refused", "value": "1"}}]
    as_header: dict[str, object] = {
        "filter": _is_grpc_with(http),
        "headers_to_add": [
            {"header": {"key": "grpc-status-details-bin", "value": encoded}},
            {"header": {"key": "grpc-status", "value": str(code)}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"},
        ],
    }
    if http == 403:  # Envoy's word for another audience
        as_body["status_code"] = as_header["status_code"] = 401
    return "\n".join(f"                    - {json.dumps(mapper)}" for mapper in (as_header, as_body))


def _has_status(http: int) -> dict[str, object]:
    value = {"default_value": http, "runtime_key": "local_reply.status"}
    return {"status_code_filter": {"comparison": {"op": "EQ", "value": value}}}


# Answers of envoy/*.lua have their body already.
NOT_BY_OUR_SCRIPTS = {
    "extension_filter": {
        "name": "envoy.access_loggers.extension_filters.cel",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.access_loggers.filters.cel.v3.ExpressionFilter",
            "expression": 'response.code_details != "lua_response"',
        },
    }
}


def _is_grpc_with(http: int) -> dict[str, object]:
    native = {"name": "x-gotohotel-native-grpc", "present_match": True}
    return {"and_filter": {"filters": [_has_status(http), {"header_filter": {"header": native}}]}}
