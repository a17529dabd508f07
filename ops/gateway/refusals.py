"""Envoy's own errors, in the shape of the contract."""

import base64
import json
from collections.abc import Iterable, Mapping

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2

# Envoy's own detail about the error, where it is useful.
ENVOYS_WORDS = "%LOCAL_REPLY_BODY%"

OUTCOME_UNKNOWN = (
    "the connection to the service broke; the outcome is unknown: fetch the resource, or repeat with the same requestId"
)

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


def mappers(http: int, code: int, reason: str, message: str, wait: int | None) -> str:
    """Error bodies: gRPC calls get the details in a header, all others a JSON body."""
    details = _details_of(code, reason, wait)
    status = status_pb2.Status(code=code, message=reason)
    for detail in details:
        status.details.add().Pack(detail)
    encoded = base64.b64encode(status.SerializeToString()).decode().rstrip("=")
    by_envoy = {"and_filter": {"filters": [_has_status(http), _word('!= "lua_response"')]}}  # our scripts write bodies
    waits = {"headers_to_add": [{"header": {"key": "retry-after", "value": str(wait)}}]} if wait is not None else {}
    as_body: dict[str, object] = {"filter": by_envoy, "body_format_override": _body(code, message, details), **waits}
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
    if http == 503:
        text = {"text_format_source": {"inline_string": OUTCOME_UNKNOWN}}
        broken = {"filter": _has_broken(), "body_format_override": _body(code, OUTCOME_UNKNOWN, details), **waits}
        broken_grpc = {
            **as_header,
            "filter": {"and_filter": {"filters": [_is_grpc_with(http), _has_broken()]}},
            "body_format_override": text,
        }
        return _yaml(broken_grpc, as_header, broken, as_body)
    return _yaml(as_header, as_body)


def upgrade_mapper() -> str:
    """A protocol upgrade is 400; Envoy's own word for it is 403."""
    code, reason = code_pb2.INVALID_ARGUMENT, "INVALID_ARGUMENT"
    body = _body(code, "protocol upgrade is not supported", _details_of(code, reason, None))
    return _yaml({"filter": _word('== "upgrade_failed"'), "status_code": 400, "body_format_override": body})


def _details_of(code: int, reason: str, wait: int | None) -> list[Message]:
    metadata = {"retryable": str(wait is not None or code == code_pb2.DEADLINE_EXCEEDED).lower()}
    details: list[Message] = [error_details_pb2.ErrorInfo(reason=reason, domain="gotohotel", metadata=metadata)]
    if wait is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromSeconds(wait)
        details.append(retry)
    return details


def _body(code: int, message: str, details: Iterable[Message]) -> dict[str, object]:
    as_json = [
        {"@type": f"type.googleapis.com/{detail.DESCRIPTOR.full_name}", **MessageToDict(detail)} for detail in details
    ]
    return {
        "json_format": {"code": code, "message": message, "details": as_json},
        "content_type": "application/json",
    }


def _yaml(*chosen: Mapping[str, object]) -> str:
    return "\n".join(f"                    - {json.dumps(mapper)}" for mapper in chosen)


def _has_status(http: int) -> dict[str, object]:
    value = {"default_value": http, "runtime_key": "local_reply.status"}
    return {"status_code_filter": {"comparison": {"op": "EQ", "value": value}}}


def _has_broken() -> dict[str, object]:
    """A filter for calls whose connection to the service ended before the answer."""
    return {"and_filter": {"filters": [_has_status(503), {"response_flag_filter": {"flags": ["UC", "UR", "LR"]}}]}}


def _word(comparison: str) -> dict[str, object]:
    """A filter by Envoy's own word for what happened."""
    kind = "type.googleapis.com/envoy.extensions.access_loggers.filters.cel.v3.ExpressionFilter"
    expression = {"@type": kind, "expression": f"response.code_details {comparison}"}
    return {"extension_filter": {"name": "envoy.access_loggers.extension_filters.cel", "typed_config": expression}}


def _is_grpc_with(http: int) -> dict[str, object]:
    native = {"name": "x-gotohotel-native-grpc", "present_match": True}
    return {"and_filter": {"filters": [_has_status(http), {"header_filter": {"header": native}}]}}
