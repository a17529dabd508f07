"""The use cases of reviewing."""

from datetime import datetime

from gotohotel.domain import Actor
from review_svc.domain import Review, Reviews


async def write_review(
    reviews: Reviews, order_id: str, text: str, *, owner: str | None, by: Actor, now: datetime
) -> Review:
    """Writes a review, once. Raises ReviewNotFound, StayReviewedAlready, ReviewChanged."""
    review = await reviews.get(order_id, owner=owner)
    review.write(text, by=by, at=now)
    await reviews.save(review)
    return review
