"""The data that the invariants are checked on, read one after the other."""

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from typing import Any

from mypage_svc.domain import MyPage
from ops.audit.window import EVERYTHING, Window


@dataclass(frozen=True, slots=True)
class StreamEvent:
    """One message of the stream or its archive. `message` is None for an event type that only a newer release knows."""

    event_id: str
    aggregate: str
    type: str
    version: int
    published_at: datetime | None
    message: Any
    from_relay: bool  # and not redriven or republished by a command

    @property
    def name(self) -> str:
        """The event's name without its package."""
        return self.type.rsplit(".", 1)[1]

    @property
    def source(self) -> str:
        """The service that published it."""
        return self.type.split(".")[1]


@dataclass
class AuditSnapshot:
    """Everything that the invariants are checked on, read one after the other."""

    window: Window = EVERYTHING  # of the orders that were read
    orders: dict[str, Any] = field(default_factory=dict)
    payments: dict[str, Any] = field(default_factory=dict)
    reservations: dict[str, Any] = field(default_factory=dict)
    pages: dict[str, MyPage] = field(default_factory=dict)
    pages_in: str = "postgres"  # or the bucket of NATS
    page_owners: dict[str, str | None] = field(default_factory=dict)  # order → whose lists have the page
    unlisted_pages: list[str] = field(default_factory=list)  # orders whose page lacks a place in a list
    pages_left: int = 0  # in the table, although the pages are in NATS
    # order → its messages; None: a release without messages
    messages: dict[str, list[Any]] | None = None
    messages_since: datetime | None = None  # earlier changes have none
    handed_over: Counter[str] | None = None  # key of a message → how often the provider has it; None without its log
    charges: dict[str, list[Any]] = field(default_factory=lambda: defaultdict(list))
    allotment: list[Any] = field(default_factory=list)
    live_nights: dict[tuple[str, date], int] = field(default_factory=dict)  # of all live orders, in any window
    capacities: dict[str, int] = field(default_factory=dict)
    catalogue: list[Any] = field(default_factory=list)  # the desk's room types
    copied_catalogue: list[Any] = field(default_factory=list)  # those of order_svc
    outbox: list[Any] = field(default_factory=list)
    inboxes: dict[str, set[str]] = field(default_factory=dict)  # service → ids of the events that it has handled
    # (service, subject) → since when it subscribes to it, if it was added later
    heard_since: dict[tuple[str, str], datetime] = field(default_factory=dict)
    # service → since when it stores who caused a change; earlier changes have no actor
    actors_since: dict[str, datetime] = field(default_factory=dict)
    answered_orders: list[str] = field(default_factory=list)
    events: list[StreamEvent] = field(default_factory=list)
    dead_letters: list[str] = field(default_factory=list)
    dead_lettered: set[tuple[str, str]] = field(default_factory=set)  # (service, event id) of the dead letters
    card_numbers: list[str] = field(default_factory=list)
    # Subjects of tokens that contain a card number's digits among others: ids of the issuer, not typed by a guest.
    odd_subjects: set[str] = field(default_factory=set)

    now: datetime = field(default_factory=lambda: datetime.now(UTC))  # PostgreSQL's

    def said(self, *names: str) -> Iterator[StreamEvent]:
        """The events of these names that can be parsed."""
        return (event for event in self.events if event.name in names and event.message is not None)
