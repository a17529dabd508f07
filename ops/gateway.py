"""Fills in envoy/envoy.yaml."""

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from string import Template

from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2

TEMPLATE = Path(__file__).parents[1] / "envoy" / "envoy.yaml"

# The gateway's own answers: HTTP status → (google.rpc.Code, reason, seconds to wait before trying again).
LOCAL_REPLIES = {
    400: (code_pb2.INVALID_ARGUMENT, "INVALID_ARGUMENT", None),
    401: (code_pb2.UNAUTHENTICATED, "UNAUTHENTICATED", None),
    403: (code_pb2.PERMISSION_DENIED, "PERMISSION_DENIED", None),
    404: (code_pb2.NOT_FOUND, "NO_SUCH_PATH", None),
    408: (code_pb2.DEADLINE_EXCEEDED, "REQUEST_TIMEOUT", None),
    413: (code_pb2.INVALID_ARGUMENT, "PAYLOAD_TOO_LARGE", None),
    429: (code_pb2.RESOURCE_EXHAUSTED, "RATE_LIMITED", 1),
    431: (code_pb2.INVALID_ARGUMENT, "HEADERS_TOO_LARGE", None),
    503: (code_pb2.UNAVAILABLE, "UNAVAILABLE", 1),
    504: (code_pb2.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED", None),
}

CLUSTER = """\
    - name: {name}
      type: STRICT_DNS
      connect_timeout: 0.25s
      respect_dns_ttl: true
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
        endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: {host}, port_value: {port}}}}}}}}}]}}]
"""


def render(values: Mapping[str, object], services: Mapping[str, tuple[str, int]]) -> str:
    """The configuration for these values and these services' (host, port). Raises KeyError for a missing value."""
    clusters = "".join(CLUSTER.format(name=name, host=host, port=port) for name, (host, port) in services.items())
    pay_host, pay_port = services["pay_svc"]
    mappers = "\n".join(_mappers(http, *reply) for http, reply in LOCAL_REPLIES.items())
    return Template(TEMPLATE.read_text()).substitute(
        values, PUBLIC_CLUSTERS=clusters, LOCAL_REPLY_MAPPERS=mappers, PAY_HOST=pay_host, PAY_PORT=pay_port
    )


def _mappers(http: int, code: int, reason: str, wait: int | None) -> str:
    """A gRPC call gets the details as a header, any other a JSON body."""
    details: list[Message] = [error_details_pb2.ErrorInfo(reason=reason, domain="gotohotel")]
    body: dict[str, object] = {"code": code, "message": "%LOCAL_REPLY_BODY%", "details": []}
    info = {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": reason, "domain": "gotohotel"}
    body["details"] = [info]
    if wait is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromSeconds(wait)
        details.append(retry)
        body["details"] = [
            info,
            {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": f"{wait}s"},
        ]
    status = status_pb2.Status(code=code, message=reason)
    for detail in details:
        status.details.add().Pack(detail)
    encoded = base64.b64encode(status.SerializeToString()).decode().rstrip("=")
    return "\n".join(_mapper(http, is_grpc=is_grpc, body=body, details=encoded) for is_grpc in (True, False))


def _mapper(http: int, *, is_grpc: bool, body: dict[str, object], details: str) -> str:
    same_status = {
        "status_code_filter": {
            "comparison": {"op": "EQ", "value": {"default_value": http, "runtime_key": "local_reply.status"}}
        }
    }
    grpc_type = {
        "header_filter": {
            "header": {
                "name": "content-type",
                "string_match": {"prefix": "application/grpc"},
                "invert_match": not is_grpc,
                "treat_missing_header_as_empty": True,
            }
        }
    }
    mapper: dict[str, object] = {"filter": {"and_filter": {"filters": [same_status, grpc_type]}}}
    if is_grpc:
        header = {"key": "grpc-status-details-bin", "value": details}
        mapper["headers_to_add"] = [{"header": header, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}]
    else:
        mapper["body_format_override"] = {"json_format": body, "content_type": "application/json"}
    return f"                    - {json.dumps(mapper)}"
