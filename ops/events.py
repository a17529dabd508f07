"""All event types of this release by full name, which is also their subject."""

from importlib import import_module

from google.protobuf.message import Message

from ops.services import PUBLISHERS, part

_MODULES = [import_module(f"gotohotel.{part(name)}.v1.events_pb2") for name in PUBLISHERS]

TYPES: dict[str, type[Message]] = {
    message.full_name: getattr(module, message.name)
    for module in _MODULES
    for message in module.DESCRIPTOR.message_types_by_name.values()
}
