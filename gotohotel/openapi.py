"""The OpenAPI description of the JSON calls, generated from the compiled protos, as the gateway's routes are."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.api import field_behavior_pb2
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
)

from gotohotel.rpc.access import ANYBODY, allowed_roles, bindings

PACKAGE = "gotohotel."
PATH_FIELD = r"{(\w+)}"
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
    "google.type.Money": {
        "type": "object",
        "properties": {
            "currencyCode": {"type": "string", "description": "ISO 4217."},
            "units": INT64,
            "nanos": INT32,
        },
        "additionalProperties": False,
    },
}
# The possible error answers, and when they are returned.
REFUSALS = {
    400: "A field is wrong (INVALID_ARGUMENT) or the state forbids it (FAILED_PRECONDITION).",
    401: "No token, or not a good one.",
    403: "The caller's role does not permit this call.",
    404: "There is no such thing, or it is somebody else's.",
    409: "Somebody else was faster (ABORTED), or the request id was used with another body (ALREADY_EXISTS).",
    413: "The body is too large.",
    429: "Too many requests; see RetryInfo.",
    431: "The headers are too large.",
    503: "A part can't be reached now; see RetryInfo.",
    504: "Deadline exceeded; the outcome is unknown: fetch the resource before retrying.",
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


def document(descriptors: bytes) -> dict[str, Any]:
    """The description, from a serialized FileDescriptorSet with source info."""
    ours = [file for file in FileDescriptorSet.FromString(descriptors).file if file.package.startswith(PACKAGE)]
    enums = {
        f"{file.package}.{message.name}.{enum.name}": [value.name for value in enum.value]
        for file in ours
        for message in file.message_type
        for enum in message.enum_type
    }
    files = [_File(file, enums) for file in ours]
    messages = {name: message for file in files for name, message in file.messages.items()}
    operations = [operation for file in files for operation in file.operations()]
    paths: dict[str, dict[str, Any]] = {}
    templates: dict[str, str] = {}
    for operation in operations:
        # /orders/{id} and /orders/{order_id} are the same path: the first name is used for all.
        path = templates.setdefault(re.sub(PATH_FIELD, "{}", operation.path), operation.path)
        paths.setdefault(path, {})[operation.verb] = _describe(operation, messages, re.findall(PATH_FIELD, path))
    answers: dict[str, Any] = {}
    _collect({operation.response for operation in operations}, messages, answers)
    return {
        "openapi": "3.1.0",
        "info": {"title": "GotoHotel", "version": "1", "description": "A hotel's rooms: search, book, pay, confirm."},
        "servers": [{"url": "http://localhost:8088"}],
        "security": [{"token": []}],
        "paths": dict(sorted(paths.items())),
        "components": {
            "schemas": {"Error": ERROR_SCHEMA, **dict(sorted(answers.items()))},
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}},
        },
    }


def write(descriptors: Path, target: Path) -> None:
    """Writes the description of a compiled descriptor set to a file."""
    target.write_text(json.dumps(document(descriptors.read_bytes()), indent=1) + "\n")


@dataclass(frozen=True, slots=True)
class _Message:
    """A message type with its comments and fields."""

    comment: str
    fields: dict[str, tuple[FieldDescriptorProto, str]]
    enums: dict[str, list[str]]  # full name of an enum → its values' names

    def schema(self, *, without: frozenset[str] = frozenset(), request: bool = False) -> dict[str, Any]:
        """The message as a JSON object. In a request, some fields are required."""
        chosen = [(field, comment) for name, (field, comment) in self.fields.items() if name not in without]
        schema: dict[str, Any] = {
            "type": "object",
            "description": self.comment,
            "properties": {field.json_name: self.field_schema(field, comment) for field, comment in chosen},
            "additionalProperties": False,
        }
        if request and (required := [field.json_name for field, _ in chosen if _is_required(field)]):
            schema["required"] = required
        return schema

    def field_schema(self, field: FieldDescriptorProto, comment: str) -> dict[str, Any]:
        """One field's schema."""
        schema = self._type_of(field)
        if field.label == FieldDescriptorProto.LABEL_REPEATED:
            schema = {"type": "array", "items": schema}
        return {**schema, "description": comment}

    def _type_of(self, field: FieldDescriptorProto) -> dict[str, Any]:
        type_name = field.type_name.lstrip(".")
        if field.type == FieldDescriptorProto.TYPE_MESSAGE:
            return dict(WELL_KNOWN.get(type_name, {"$ref": f"#/components/schemas/{_short(type_name)}"}))
        if field.type == FieldDescriptorProto.TYPE_ENUM:
            return {"type": "string", "enum": self.enums[type_name]}
        return dict(SCALARS[field.type])


@dataclass(frozen=True, slots=True)
class _Operation:
    """One HTTP binding of one RPC."""

    verb: str
    path: str
    has_body: bool
    needs_token: bool
    operation_id: str
    comment: str
    tag: str
    request: str
    response: str

    @property
    def path_fields(self) -> list[str]:
        """The request's fields that are in the path, by their proto names."""
        return re.findall(PATH_FIELD, self.path)


class _File:
    """One proto file: its messages and RPCs with their comments."""

    def __init__(self, file: FileDescriptorProto, enums: dict[str, list[str]]) -> None:
        self._file = file
        self._comments = {
            tuple(place.path): " ".join(place.leading_comments.split()) for place in file.source_code_info.location
        }
        self._enums = enums
        self.messages = {
            f"{file.package}.{message.name}": self._message(message, number)
            for number, message in enumerate(file.message_type)
        }

    def _message(self, message: DescriptorProto, number: int) -> _Message:
        return _Message(
            comment=self._comments.get((4, number), ""),
            fields={
                field.name: (field, self._comments.get((4, number, 2, place), ""))
                for place, field in enumerate(message.field)
            },
            enums=self._enums,
        )

    def operations(self) -> Iterator[_Operation]:
        """Every binding of every public RPC."""
        for number, service in enumerate(self._file.service):
            for place, method in enumerate(service.method):
                for count, binding in enumerate(bindings(method.options)):
                    yield _Operation(
                        verb=binding.verb,
                        path=binding.path,
                        has_body=binding.has_body,
                        needs_token=ANYBODY not in allowed_roles(method.options),
                        operation_id=method.name + (f"_{count + 1}" if count else ""),
                        comment=self._comments.get((6, number, 2, place), ""),
                        tag=service.name,
                        request=method.input_type.lstrip("."),
                        response=method.output_type.lstrip("."),
                    )


def _collect(names: set[str], messages: dict[str, _Message], schemas: dict[str, Any]) -> None:
    """The schemas of these messages and of all messages in their fields."""
    for name in names:
        if name in messages and _short(name) not in schemas:
            schemas[_short(name)] = messages[name].schema()
            inner = {field.type_name.lstrip(".") for field, _ in messages[name].fields.values()}
            _collect(inner, messages, schemas)


def _describe(operation: _Operation, messages: dict[str, _Message], path_names: list[str]) -> dict[str, Any]:
    request = messages[operation.request]
    in_path = frozenset(operation.path_fields)
    named = zip(operation.path_fields, path_names, strict=True)
    parameters = [_parameter(request, field, name=name, where="path") for field, name in named]
    if not operation.has_body:
        asked = [(name, field.json_name) for name, (field, _) in request.fields.items() if name not in in_path]
        parameters += [_parameter(request, field, name=name, where="query") for field, name in asked]
    described: dict[str, Any] = {
        "operationId": operation.operation_id,
        "tags": [operation.tag],
        "description": operation.comment,
        "parameters": parameters,
        "responses": {
            "200": _json_of({"$ref": f"#/components/schemas/{_short(operation.response)}"}, "As asked."),
            **{str(status): _json_of(ERROR, text) for status, text in REFUSALS.items()},
        },
    }
    if operation.has_body:
        schema = request.schema(without=in_path, request=True)
        described["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    if not operation.needs_token:
        described["security"] = []
    return described


def _parameter(message: _Message, field_name: str, *, name: str, where: str) -> dict[str, Any]:
    field, comment = message.fields[field_name]
    schema = message.field_schema(field, comment)
    return {
        "name": name,
        "in": where,
        "description": schema.pop("description"),
        "required": where == "path" or _is_required(field),
        "schema": schema,
    }


def _json_of(schema: dict[str, Any], description: str) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _is_required(field: FieldDescriptorProto) -> bool:
    return field_behavior_pb2.REQUIRED in field.options.Extensions[field_behavior_pb2.field_behavior]


def _short(full_name: str) -> str:
    return full_name.rsplit(".", 1)[-1]
