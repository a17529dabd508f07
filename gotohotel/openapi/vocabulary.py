"""The constant parts of the description: types, errors, and parameters that no proto declares."""

from typing import Any

from google.protobuf.descriptor_pb2 import FieldDescriptorProto

from gotohotel.format.v1 import format_pb2

ERROR = {"$ref": "#/components/schemas/Error"}

# protobuf's JSON mapping of well-known types and scalars (for int64 also the accepted number form).
INT32: dict[str, Any] = {"type": "integer", "format": "int32", "minimum": -(2**31), "maximum": 2**31 - 1}
INT64: dict[str, Any] = {"type": "string", "format": "int64", "pattern": r"^-?\d{1,19}$"}
SCALARS: dict[int, dict[str, Any]] = {
    FieldDescriptorProto.TYPE_STRING: {"type": "string"},
    FieldDescriptorProto.TYPE_BOOL: {"type": "boolean"},
    FieldDescriptorProto.TYPE_INT32: INT32,
    FieldDescriptorProto.TYPE_INT64: INT64,
}
WELL_KNOWN: dict[str, dict[str, Any]] = {
    "google.protobuf.Timestamp": {"type": "string", "format": "date-time"},
    "google.protobuf.Duration": {"type": "string", "pattern": r"^-?\d+(\.\d+)?s$"},
    "google.type.Money": {"$ref": "#/components/schemas/Money"},
}
MONEY = {
    "type": "object",
    "description": "An amount of money (google.type.Money).",
    "properties": {
        "currencyCode": {"type": "string", "description": "ISO 4217."},
        "units": {**INT64, "description": "The whole units."},
        "nanos": {**INT32, "description": "Billionths of a unit."},
    },
    "additionalProperties": False,
}
FORMATS = {format_pb2.UUID: "uuid", format_pb2.DATE: "date"}
# The possible error answers, and when they are returned.
REFUSALS = {
    400: "A field is wrong (INVALID_ARGUMENT) or the state forbids it (FAILED_PRECONDITION).",
    401: "No token, or not a good one.",
    403: "The caller's role does not permit this call.",
    404: "There is no such thing, or it is somebody else's.",
    409: "Somebody else was faster (ABORTED), or the request id was used with another body (ALREADY_EXISTS).",
    413: "The body is too large.",
    429: "Too many requests, unpaid orders or declined cards; Retry-After says how long to wait.",
    431: "The headers are too large.",
    500: "A bug (INTERNAL). The message has an id, under which the log says more.",
    503: "A part can't be reached now; Retry-After says how long to wait.",
    504: "Deadline exceeded; the outcome is unknown: fetch the resource before retrying.",
}
IDEMPOTENCY_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "description": "Another way to give the request id.",
    "required": False,
    "schema": {"type": "string", "maxLength": 64},
}
ERROR_SCHEMA = {
    "type": "object",
    "description": "google.rpc.Status; details[0] is an ErrorInfo with the reason.",
    "properties": {
        "code": {"type": "integer", "description": "google.rpc.Code."},
        "message": {"type": "string"},
        "details": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "properties": {
                    "@type": {"type": "string"},
                    "reason": {"type": "string", "pattern": "^[A-Z_]+$"},
                    "domain": {"const": "gotohotel"},
                    "metadata": {"type": "object", "properties": {"retryable": {"enum": ["true", "false"]}}},
                },
                "required": ["@type"],
            },
        },
    },
    "required": ["code", "message", "details"],
}
