"""The use cases of reviewing."""

from datetime import datetime

from review_svc.domain import Review, Reviews


async def write_review(reviews: Reviews, order_id: str, text: str, *, owner: str | None, now: datetime) -> Review:
    """Writes a review, once. Raises ReviewNotFound, StayReviewedAlready, ReviewChanged."""
    review = await reviews.get(order_id, owner=owner)
    review.write(text, at=now)
    await reviews.save(review)
    return review
