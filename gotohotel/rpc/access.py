"""What the protos declare for each RPC: who may call it, whether it has side effects, and its JSON paths."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from google.api import annotations_pb2
from google.protobuf.descriptor_pb2 import MethodOptions

from gotohotel.access.v1 import access_pb2

GUEST, DESK, SERVICE, ANYBODY = "guest", "desk", "service", "anybody"


class Binding(NamedTuple):
    """One JSON path of an RPC. `verb` is in lower case, as in the proto."""

    verb: str
    path: str
    has_body: bool


def allowed_roles(options: MethodOptions) -> frozenset[str]:
    """The roles that may call an RPC, from the option gotohotel.access.v1.allow.

    Raises LookupError without that option.
    """
    declared: Sequence[int] = options.Extensions[access_pb2.allow]  # type: ignore[index]  # protoc's stub types no extension
    if not declared:
        raise LookupError("the option (gotohotel.access.v1.allow) is missing")
    return frozenset(access_pb2.Role.Name(role).lower() for role in declared)


def has_side_effects(options: MethodOptions) -> bool:
    """Whether the call may change something: true unless it is declared NO_SIDE_EFFECTS."""
    return options.idempotency_level != MethodOptions.NO_SIDE_EFFECTS


def is_public(options: MethodOptions) -> bool:
    """Whether the gateway has a route for it."""
    return allowed_roles(options) != {SERVICE}


def bindings(options: MethodOptions) -> Iterator[Binding]:
    """Its JSON paths (google.api.http); none for an internal call."""
    rule = options.Extensions[annotations_pb2.http]
    for binding in (rule, *rule.additional_bindings):
        if verb := binding.WhichOneof("pattern"):
            yield Binding(verb, getattr(binding, verb), binding.body == "*")
