"""The vocabulary of every domain model: aggregates, events, money and the kinds of error. Pure."""

import re
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from enum import StrEnum

# DomainError
#   NotFound          it does not exist, or belongs to somebody else
#   Invalid           a value is not valid for its field
#   Conflict          somebody else changed it first; trying again may help
#   AlreadyExists     the name is taken; trying again does not help
#   WrongState        it exists, but its state forbids the act
#   TooMany           a limit for each caller is reached; waiting helps


class DomainError(Exception):
    """A violated business rule. The class's docstring is the message, its name the reason."""

    retryable = False  # whether the same call may succeed later

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or (type(self).__doc__ or "").split("\n")[0])

    @classmethod
    def reason(cls) -> str:
        """The class's name in UPPER_SNAKE, as in ErrorInfo."""
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

    retryable = True


class AlreadyExists(DomainError):
    """The name is taken."""


class WrongState(DomainError):
    """The state forbids it."""


class TooMany(DomainError):
    """Too many of them."""

    retryable = True

    def __init__(self, message: str | None = None, *, retry_after_seconds: float) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class Role(StrEnum):
    """In which role somebody causes a change."""

    GUEST = "GUEST"
    DESK = "DESK"
    SYSTEM = "SYSTEM"  # a service by itself


@dataclass(frozen=True, slots=True)
class Actor:
    """Who causes a change. The subject is that of the token, or the service's name."""

    subject: str
    role: Role


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """Something that happened to one aggregate. `version` counts that aggregate's events from 1 without a gap."""

    version: int = 0
    occurred_at: datetime
    actor: Actor


class Aggregate:
    """Guards its own rules and records its events.

    `revision` is that of the stored row: a save succeeds only if no other save came in between. `version` is the number
    of recorded events.
    """

    def __init__(self, *, version: int = 0, revision: int = 0) -> None:
        self.version = version
        self.revision = revision
        self._events: list[Event] = []

    def record(self, event: Event) -> None:
        """Records an event under the next version."""
        self.version += 1
        self._events.append(replace(event, version=self.version))

    def collect_events(self) -> list[Event]:
        """Returns the events since the last call."""
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
        """Zero in this currency."""
        return cls(currency, Decimal(0))
