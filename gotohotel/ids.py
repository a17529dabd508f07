"""Identifiers: UUIDv7 as text."""

import re
from datetime import datetime
from uuid import UUID

import uuid_utils.compat

from gotohotel.domain import Invalid

_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


def new_id() -> str:
    """A UUIDv7 as text: unique, sorted by creation time."""
    return str(uuid_utils.compat.uuid7())


def first_id_at(time: datetime) -> str:
    """The smallest UUIDv7 of that time (RFC 9562). Times before 1970 count as 1970."""
    milliseconds = f"{max(0, int(time.timestamp() * 1000)):012x}"
    return str(UUID(f"{milliseconds}70008000000000000000"))


def is_id(value: str) -> bool:
    """Whether it is a UUID as text."""
    return bool(_UUID.fullmatch(value))  # UUID() accepts braces and urn:uuid: as well


def parse_id(value: str, field: str) -> str:
    """The canonical text of a UUID. Raises Invalid naming the field."""
    if not is_id(value):
        raise Invalid(field, "must be a UUID")
    return value.lower()
