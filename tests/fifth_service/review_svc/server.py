"""review.v1.ReviewService: gRPC requests and responses."""

from collections.abc import Callable
from datetime import datetime

from gotohotel.review.v1 import review_service_pb2 as pb

from gotohotel.database import Database
from gotohotel.ids import parse_id
from gotohotel.rpc.identity import Caller
from gotohotel.texts import parse_text
from review_svc import service
from review_svc.domain import Review
from review_svc.store import PostgresReviews


class ReviewServer:
    """The RPCs of review_svc. `clock` is the database's time."""

    def __init__(self, database: Database, *, clock: Callable[[], datetime]) -> None:
        self._reviews = PostgresReviews(database.autocommit)
        self._clock = clock

    async def GetReview(self, request: pb.GetReviewRequest, caller: Caller) -> pb.Review:
        return _review(await self._reviews.get(parse_id(request.order_id, "orderId"), owner=caller.owner))

    async def WriteReview(self, request: pb.WriteReviewRequest, caller: Caller) -> pb.Review:
        order_id, text = parse_id(request.order_id, "orderId"), parse_text(request.text, "text", limit=500)
        review = await service.write_review(
            self._reviews, order_id, text, owner=caller.owner, by=caller.actor, now=self._clock()
        )
        return _review(review)


def _review(review: Review) -> pb.Review:
    return pb.Review(order_id=review.order_id, text=review.text)
