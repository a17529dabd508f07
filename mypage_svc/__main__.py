"""Puts mypage_svc together and runs it."""

from pathlib import Path

from gotohotel.app import App, run
from gotohotel.mypage.v1 import mypage_service_pb2
from gotohotel.settings import Settings
from mypage_svc.policies import policies
from mypage_svc.server import MyPageServer
from mypage_svc.store import PostgresPages
from mypage_svc.watches import open_watches


class MyPageSettings(Settings):
    """MYPAGE_… in the environment."""


async def compose(app: App, settings: MyPageSettings) -> None:
    """Wires the service together."""
    pages = PostgresPages(app.database.autocommit, settings.database_url)
    watches = await app.resources.enter_async_context(open_watches(pages))
    server = MyPageServer(pages, watches, clock=app.clock.now)
    app.serve(mypage_service_pb2.DESCRIPTOR.services_by_name["MyPageService"], server)
    app.listen(policies)


if __name__ == "__main__":
    run(MyPageSettings, "MYPAGE", compose, folder=Path(__file__).parent)
