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

from gotohotel.format.v1 import format_pb2
from gotohotel.openapi.vocabulary import (
    ERROR,
    ERROR_SCHEMA,
    FORMATS,
    IDEMPOTENCY_KEY,
    MONEY,
    REFUSALS,
    SCALARS,
    WELL_KNOWN,
)
from gotohotel.rpc.access import ANYBODY, Binding, allowed_roles, bindings, has_side_effects

PACKAGE = "gotohotel."
PATH_FIELD = r"{(\w+)}"


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
        "info": {
            "title": "GotoHotel",
            "version": "1",
            "summary": "A hotel's rooms: search, book, pay, confirm.",
            "license": {"name": "None is granted yet", "identifier": "NONE"},
        },
        "servers": [{"url": "/", "description": "The gateway that serves this description."}],
        "security": [{"token": []}],
        "tags": [tag for file in files for tag in file.tags()],
        "paths": dict(sorted(paths.items())),
        "components": {
            "schemas": {"Error": ERROR_SCHEMA, "Money": MONEY, **dict(sorted(answers.items()))},
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
        """The message as a JSON object. In a request, the fields that its proto calls required are; in a response, all
        are but messages, which may be absent.
        """
        chosen = [(field, comment) for name, (field, comment) in self.fields.items() if name not in without]
        schema: dict[str, Any] = {
            "type": "object",
            "description": self.comment,
            "properties": {field.json_name: self.field_schema(field, comment) for field, comment in chosen},
            "additionalProperties": False,
        }
        is_required = _is_required if request else _is_always_present
        if required := [field.json_name for field, _ in chosen if is_required(field)]:
            schema["required"] = required
        return schema

    def field_schema(self, field: FieldDescriptorProto, comment: str) -> dict[str, Any]:
        """One field's schema."""
        schema = self._type_of(field)
        if field.label == FieldDescriptorProto.LABEL_REPEATED:
            schema = {"type": "array", "items": schema}
        else:
            extensions: Any = field.options.Extensions  # protoc's stub types none of ours
            if text_format := FORMATS.get(extensions[format_pb2.format]):
                schema["format"] = text_format
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
    changes: bool
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

    def tags(self) -> Iterator[dict[str, str]]:
        """One for each service, with its comment."""
        for number, service in enumerate(self._file.service):
            yield {"name": service.name, "description": self._comments.get((6, number), "")}

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
                        changes=has_side_effects(method.options),
                        operation_id=_operation_id(binding) if count else method.name[0].lower() + method.name[1:],
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
    if operation.changes and "request_id" in request.fields:
        parameters.append(IDEMPOTENCY_KEY)
    described: dict[str, Any] = {
        "operationId": operation.operation_id,
        "tags": [operation.tag],
        "summary": operation.comment.split(". ")[0].split(": ")[0].rstrip("."),
        "description": operation.comment,
        "parameters": parameters,
        "responses": {
            "200": _answer(operation),
            **{str(status): _refusal(status) for status in _refusals(operation)},
        },
    }
    if operation.has_body:
        schema = request.schema(without=in_path, request=True)
        described["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    if not operation.needs_token:
        described["security"] = []
    return described


def _answer(operation: _Operation) -> dict[str, Any]:
    if operation.response == "google.api.HttpBody":
        events = {"text/event-stream": {"schema": {"type": "string"}}}
        return {"description": "Server-sent events.", "content": events}
    return _json_of({"$ref": f"#/components/schemas/{_short(operation.response)}"}, "As asked.")


def _refusals(operation: _Operation) -> list[int]:
    """The errors that an operation can answer with."""
    impossible = set()
    if not operation.needs_token:
        impossible |= {401, 403}
    if not operation.path_fields and not operation.has_body:
        impossible.add(404)
    if not operation.changes:
        impossible.add(409)
    if not operation.has_body:
        impossible.add(413)
    return [status for status in REFUSALS if status not in impossible]


def _refusal(status: int) -> dict[str, Any]:
    answer = _json_of(ERROR, REFUSALS[status])
    if status in (429, 503):
        wait = {"description": "Seconds to wait.", "schema": {"type": "integer", "minimum": 1}}
        answer["headers"] = {"Retry-After": wait}
    return answer


def _operation_id(binding: Binding) -> str:
    """The name of an RPC's second path: DELETE /orders/{order_id} → deleteOrder, POST /payments → createPayment."""
    act = {"post": "create"}.get(binding.verb, binding.verb)
    noun = binding.path.split("/")[1].removesuffix("s")
    return act + noun[0].upper() + noun[1:]


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


def _is_always_present(field: FieldDescriptorProto) -> bool:
    """Whether the field is in every response: the gateway writes empty values, but no absent messages."""
    is_list = field.label == FieldDescriptorProto.LABEL_REPEATED
    return is_list or field.type != FieldDescriptorProto.TYPE_MESSAGE


def _is_required(field: FieldDescriptorProto) -> bool:
    return field_behavior_pb2.REQUIRED in field.options.Extensions[field_behavior_pb2.field_behavior]


def _short(full_name: str) -> str:
    return full_name.rsplit(".", 1)[-1]
