"""The public RPCs, as the compiled protos declare them."""

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from google.protobuf import descriptor_pool
from google.protobuf.descriptor_pb2 import FileDescriptorSet

import gotohotel
from gotohotel.rpc import access
from ops.services import part

FOLDER = Path(__file__).parents[2] / "envoy"
DESCRIPTORS = Path(gotohotel.__file__).parent / "descriptors.binpb"


@dataclass(frozen=True, slots=True)
class PublicRpc:
    """An RPC with a route, and the cluster that serves it."""

    cluster: str
    service: str  # full name
    name: str
    needs_no_token: bool
    is_stream: bool
    has_side_effects: bool
    bindings: list[access.Binding]
    request: str  # full name of the message

    @property
    def paths(self) -> list[str]:
        """Its gRPC path and its JSON paths."""
        return [f"/{self.service}/{self.name}", *(binding.path for binding in self.bindings)]


def public_rpcs(services: Iterable[str]) -> Iterator[PublicRpc]:
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
                        method.server_streaming,
                        access.has_side_effects(method.options),
                        list(access.bindings(method.options)),
                        method.input_type.removeprefix("."),
                    )


def contract_tables(rpcs: Iterable[PublicRpc], pages: Iterable[str]) -> str:
    """The tables CALLS and FIELDS of envoy/body.lua. `pages` are the paths of files."""
    calls: list[list[object]] = [["GET", f"^{_lua_pattern(page)}$", False, []] for page in pages]
    wanted: list[str] = []
    for rpc in rpcs:
        for binding in rpc.bindings:
            names = re.findall(r"{(\w+)}", binding.path)
            pattern = re.sub(r"{\w+}", "([^/:]+)", _lua_pattern(binding.path))
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


def path_regex(path: str) -> str:
    """A regular expression for a path in which {field} stands for any text without a slash or a colon."""
    return re.sub(r"\\{\w+\\}", "[^/:]+", re.escape(path))


def _lua_pattern(path: str) -> str:
    return re.sub(r"[-.:]", r"%\g<0>", path)


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
