"""The vocabulary of every domain model: aggregates, events, values and the kinds of error. Pure."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from uuid import UUID

import uuid_utils.compat

# DomainError
#   NotFound          there is no such thing, or it is somebody else's
#   Invalid           a value is not what its field takes
#   Conflict          somebody else was faster; trying again may help
#     AlreadyExists   the name is taken; trying again does not help
#   WrongState        the thing exists, but its state forbids the act


class DomainError(Exception):
    """Something that the business forbids. The class's docstring is its message, its name the reason."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or (type(self).__doc__ or "").split("\n")[0])

    @classmethod
    def reason(cls) -> str:
        """The class's name as UPPER_SNAKE, as it stands in ErrorInfo."""
        return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", cls.__name__).upper()


class NotFound(DomainError):
    """There is no such thing."""


class Invalid(DomainError):
    """A value is not what its field takes. `field` is the JSON name; the value itself is never echoed."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field} {message}")
        self.field = field
        self.description = message


class Conflict(DomainError):
    """Somebody else changed the same thing at the same time."""


class AlreadyExists(DomainError):
    """The name is taken."""


class WrongState(DomainError):
    """The state forbids it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """Something that happened to one aggregate; `version` counts that aggregate's events from 1 without a gap."""

    version: int = 0
    occurred_at: datetime


class Aggregate:
    """Guards its own rules and records what happened to it.

    `revision` is that of the stored row: a save succeeds only if nobody saved in between. `version` counts
    the announced events.
    """

    def __init__(self, *, version: int = 0, revision: int = 0) -> None:
        self.version = version
        self.revision = revision
        self._events: list[Event] = []

    def record(self, event: Event) -> None:
        """Announces an event under the next version."""
        self.version += 1
        self._events.append(replace(event, version=self.version))

    def collect_events(self) -> list[Event]:
        """Hands over what happened since the last call."""
        events, self._events = self._events, []
        return events


@dataclass(frozen=True, slots=True)
class Money:
    """An amount of one currency (ISO 4217), exact to nine decimals, never negative."""

    currency: str
    amount: Decimal

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Z]{3}", self.currency):
            raise ValueError("a currency has three capital letters")
        if self.amount < 0:
            raise ValueError("an amount is not negative")

    def __add__(self, other: "Money") -> "Money":
        if other.currency != self.currency:
            raise ValueError(f"{self.currency} and {other.currency} do not add up")
        return Money(self.currency, self.amount + other.amount)

    def __mul__(self, times: int) -> "Money":
        return Money(self.currency, self.amount * times)

    @classmethod
    def zero(cls, currency: str) -> "Money":
        """Nothing, in that currency."""
        return cls(currency, Decimal(0))


def new_id() -> str:
    """A UUIDv7 as text: unique, and sorted by the time of its making."""
    return str(uuid_utils.compat.uuid7())


def first_id_at(time: datetime) -> str:
    """The least UUIDv7 that could have been made at that time (RFC 9562), which knows none before 1970."""
    milliseconds = f"{max(0, int(time.timestamp() * 1000)):012x}"
    return str(UUID(f"{milliseconds}70008000000000000000"))


def parse_id(value: str, field: str) -> str:
    """The canonical text of a UUID. Raises Invalid naming the field."""
    try:
        return str(UUID(value))
    except ValueError:
        raise Invalid(field, "must be a UUID") from None


# Digits with at most two signs between them, as people write them: 4242 4242, 4242-4242, 4242.4242, 4242 – 4242.
_DIGITS = re.compile(r"\d(?:[ \u00a0\u202f._/\-\u2010-\u2015]{0,2}\d){12,}")
# Identifiers hold digits too, but no card number: UUIDs, trace contexts, SHA-256, and seconds since 1970 in logs.
_IDENTIFIER = re.compile(
    r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}"
    r"|(?<!\w)(?=\d*[a-f])[0-9a-f]{64}(?!\w)|(?<!\d)\d{10}\.\d{3,9}(?!\d)"
)


def passes_luhn(digits: str) -> bool:
    """Whether the last digit is the Luhn check digit of the others (ISO/IEC 7812-1)."""
    doubled = (int(digit) * 2 for digit in digits[-2::-2])
    return (sum(map(int, digits[-1::-2])) + sum(d - 9 if d > 9 else d for d in doubled)) % 10 == 0


def find_card_numbers(text: str) -> list[str]:
    """The parts of a text that may be card numbers: 13 to 19 digits that begin with 2 to 6 and pass Luhn.

    Every stretch of digits is tried from every digit on: an expiry date beside a number does not hide it. What is an
    identifier by its form is passed over: this is for what the program writes. What a guest writes: parse_text.
    """
    if len(text) < 13:
        return []
    return [found for run in _DIGITS.finditer(_IDENTIFIER.sub(" ", text)) for found in _cards_in(run[0])]


def _cards_in(text: str) -> Iterator[str]:
    """The card numbers in a text, whatever is between their digits but letters."""
    for run in re.finditer(r"\d(?:[\W_]*\d){12,}", text):
        places = [place for place, char in enumerate(run[0]) if char.isdecimal()]
        digits = "".join(str(int(run[0][place])) for place in places)
        first = 0
        while first <= len(digits) - 13:
            lengths = range(min(19, len(digits) - first), 12, -1)
            last = next((first + n for n in lengths if passes_luhn(digits[first : first + n])), None)
            if last is not None and digits[first] in "23456":
                yield run[0][places[first] : places[last - 1] + 1]
                first = last
            else:
                first += 1


def parse_key(value: str, field: str, *, limit: int) -> str:
    """An id that a caller made up: as parse_text, but digits in a UUID, a trace or a hash are no card number."""
    if _IDENTIFIER.fullmatch(value):
        return value
    return parse_text(value, field, limit=limit)


def parse_text(value: str, field: str, *, limit: int) -> str:
    """Free text as a guest may type it, without the blanks around it.

    Raises Invalid if it is too long, has control characters, or looks like a card number.
    """
    text = value.strip()
    if len(text) > limit:
        raise Invalid(field, f"must have at most {limit} characters")
    if any(ord(char) < 32 or ord(char) == 127 for char in text):
        raise Invalid(field, "must not have control characters")
    if any(True for _ in _cards_in(text)):
        raise Invalid(field, "must not hold a card number")
    return text
