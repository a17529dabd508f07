"""The rules of reviewing: once, by the guest, after the desk has confirmed. Pure."""

from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from gotohotel.domain import Aggregate, Conflict, Event, NotFound, WrongState


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
    """An order's review. The owner comes from the payment's event, the confirmation from the desk's, in any order."""

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

    def write(self, text: str, *, at: datetime) -> None:
        """Raises StayReviewedAlready."""
        if self.text:
            raise StayReviewedAlready()
        self.text = text
        self.record(StayReviewed(occurred_at=at, text=text))


class Reviews(Protocol):
    """Where reviews are kept."""

    async def get(self, order_id: str, *, owner: str | None) -> Review:
        """A confirmed order's review; raises ReviewNotFound if it is not this owner's (None: anybody's)."""

    async def save(self, *reviews: Review) -> None:
        """Saves new ones and changes, and announces what happened. Raises ReviewChanged."""
