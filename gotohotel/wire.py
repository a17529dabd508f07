"""Values in messages: money, time, pages of lists."""

import base64
import binascii
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

from google.protobuf.timestamp_pb2 import Timestamp
from google.type import money_pb2

from gotohotel.access.v1 import actor_pb2
from gotohotel.domain import Actor, Invalid, Money, Role

MAX_UNITS = 10**12
LAST_ID = "ffffffff-ffff-ffff-ffff-ffffffffffff"  # larger than any id: the first page is what comes before it


def timestamp(time: datetime) -> Timestamp:
    """A point in time."""
    message = Timestamp()
    message.FromDatetime(time)
    return message


def money_to_proto(money: Money) -> money_pb2.Money:
    """Units and nanos of an amount."""
    units = int(money.amount)
    return money_pb2.Money(currency_code=money.currency, units=units, nanos=int((money.amount - units) * 1_000_000_000))


def money_from_proto(message: money_pb2.Money, field: str) -> Money:
    """The amount in a message. Raises Invalid naming the field."""
    if not 0 <= message.units <= MAX_UNITS or not 0 <= message.nanos < 1_000_000_000:
        raise Invalid(field, f"must be 0 to {MAX_UNITS} units and 0 to 999999999 nanos")
    try:
        return Money(message.currency_code, Decimal(message.units) + Decimal(message.nanos) / 1_000_000_000)
    except ValueError as error:
        raise Invalid(field, str(error)) from None


def actor_to_proto(actor: Actor) -> actor_pb2.Actor:
    """Who causes a change."""
    return actor_pb2.Actor(subject=actor.subject, role=actor.role.value)


def actor_from_proto(message: actor_pb2.Actor) -> Actor | None:
    """Who caused a change; None in messages of the first release, which does not say."""
    known = {getattr(actor_pb2.Actor, role.value): role for role in Role}
    return Actor(message.subject, known[message.role]) if message.subject and message.role in known else None


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a list: at most `size` items whose UUIDv7 is less than `before`."""

    size: int
    before: str

    def next_token(self, ids: list[str]) -> str:
        """The token of the page after one that ended with these ids; a full page may have a next one."""
        return base64.urlsafe_b64encode(ids[-1].encode()).decode() if len(ids) == self.size else ""


def parse_page(request: Any) -> Page:
    """Reads page_size and page_token. Raises Invalid."""
    if request.page_size < 0:
        raise Invalid("pageSize", "must not be negative")
    before = LAST_ID
    if request.page_token:
        try:
            before = str(UUID(base64.urlsafe_b64decode(request.page_token.encode()).decode("ascii")))
        except (binascii.Error, ValueError):
            raise Invalid("pageToken", "is not a token of this list") from None
    return Page(min(request.page_size or 50, 200), before)
