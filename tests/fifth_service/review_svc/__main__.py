"""Puts review_svc together and runs it."""

from pathlib import Path

from gotohotel.review.v1 import review_service_pb2

from gotohotel.app import App, run
from gotohotel.settings import Settings
from review_svc.policies import policies
from review_svc.server import ReviewServer


class ReviewSettings(Settings):
    """REVIEW_… in the environment."""


async def compose(app: App, _: ReviewSettings) -> None:
    """Wires the service together."""
    server = ReviewServer(app.database, clock=app.clock.now)
    app.serve(review_service_pb2.DESCRIPTOR.services_by_name["ReviewService"], server)
    app.listen(policies)


if __name__ == "__main__":
    run(ReviewSettings, "REVIEW", compose, folder=Path(__file__).parent)
