"""The rules of reviewing a stay: once, by its guest, after the desk has confirmed it. Pure."""

from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from gotohotel.domain import Actor, Aggregate, Conflict, Event, NotFound, WrongState


class ReviewNotFound(NotFound):
    """There is no such review."""


class ReviewChanged(Conflict):
    """The review was changed at the same time; try again."""


class StayReviewedAlready(WrongState):
    """The stay was reviewed before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StayReviewed(Event):
    """A guest has reviewed a stay."""

    text: str


class Review(Aggregate):
    """An order's review. The owner is in the payment's event, the confirmation in the desk's, in any order."""

    def __init__(
        self,
        order_id: str,
        *,
        owner: str = "",
        confirmed: bool = False,
        text: str = "",
        version: int = 0,
        revision: int = 0,
    ) -> None:
        super().__init__(version=version, revision=revision)
        self.order_id = order_id
        self.owner = owner
        self.confirmed = confirmed
        self.text = text

    def write(self, text: str, *, by: Actor, at: datetime) -> None:
        """Writes the review. Raises StayReviewedAlready."""
        if self.text:
            raise StayReviewedAlready()
        self.text = text
        self.record(StayReviewed(occurred_at=at, actor=by, text=text))


class Reviews(Protocol):
    """Stores reviews."""

    async def get(self, order_id: str, *, owner: str | None) -> Review:
        """A confirmed order's review. Raises ReviewNotFound if it is missing or has another owner (None: any)."""

    async def save(self, *reviews: Review) -> None:
        """Saves new and changed reviews and stores their events. Raises ReviewChanged."""
