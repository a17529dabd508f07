"""Puts mypage_svc together and runs it."""

from pathlib import Path

from gotohotel.app import App, run
from gotohotel.mypage.v1 import mypage_service_pb2
from gotohotel.settings import Settings
from mypage_svc.policies import policies
from mypage_svc.server import MyPageServer


class MyPageSettings(Settings):
    """MYPAGE_… in the environment."""


async def compose(app: App, _: MyPageSettings) -> None:
    """Wires the service together."""
    app.serve(mypage_service_pb2.DESCRIPTOR.services_by_name["MyPageService"], MyPageServer(app.database))
    app.listen(policies)


if __name__ == "__main__":
    run(MyPageSettings, "MYPAGE", compose, folder=Path(__file__).parent)
