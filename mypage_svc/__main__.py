"""Puts mypage_svc together and runs it."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from datetime import time
from functools import partial
from pathlib import Path
from typing import Annotated
from zoneinfo import ZoneInfo

from pydantic import Field

from gotohotel.app import App, run
from gotohotel.database import Connection
from gotohotel.mypage.v1 import mypage_service_pb2
from gotohotel.settings import PhoneRegion, SettingRefused, Settings
from mypage_svc.domain import Pages
from mypage_svc.jobs import Jobs
from mypage_svc.kakao import Provider
from mypage_svc.kakao.console import open_console
from mypage_svc.kakao.nhn import open_nhn
from mypage_svc.policies import policies
from mypage_svc.server import MyPageServer
from mypage_svc.store import (
    PLACE,
    Buckets,
    Changes,
    NatsPages,
    PostgresPages,
    open_work,
)
from mypage_svc.watches import open_watches

GATHER_SECONDS = 0.03  # less than other services: a guest who has paid looks at the page
PageStore = Callable[[Connection], Pages]
STORES: dict[str, Callable[[App], PageStore]] = {
    "postgres": lambda _: PostgresPages,
    "nats": lambda app: partial(NatsPages, buckets=Buckets(app.bus.connected)),
}
PROVIDERS: dict[str, Callable[[], AbstractAsyncContextManager[Provider]]] = {
    "console": open_console,
    "nhn": open_nhn,
}


class MyPageSettings(Settings):
    """MYPAGE_… in the environment."""

    store: Annotated[str, Field(pattern=f"^({'|'.join(STORES)})$")] = "postgres"  # where the pages are
    kakao: Annotated[str, Field(pattern=f"^({'|'.join(PROVIDERS)})$")] = "console"  # an adapter has its own settings
    phone_region: PhoneRegion = "KR"
    time_zone: ZoneInfo = ZoneInfo("Asia/Seoul")  # the property's
    quiet_from: time | None = None  # no message is sent from then
    quiet_until: time = time(8)  # until then


async def compose(app: App, settings: MyPageSettings) -> None:
    """Wires the service together."""
    await _require_store(app, settings)
    pages_on = STORES[settings.store](app)
    pages = pages_on(app.database.autocommit)
    watches = await app.resources.enter_async_context(open_watches(pages, Changes(settings.database_url)))
    provider = await app.resources.enter_async_context(PROVIDERS[settings.kakao]())
    jobs = Jobs(
        app.database,
        pages_on,
        provider,
        clock=app.clock.now,
        region=settings.phone_region,
        time_zone=settings.time_zone,
        numbers_end=app.numbers_end,
        quiet_hours=(settings.quiet_from, settings.quiet_until) if settings.quiet_from else None,
    )
    server = MyPageServer(pages, watches, clock=app.clock.now)
    app.serve(mypage_service_pb2.DESCRIPTOR.services_by_name["MyPageService"], server)
    app.listen(policies.using(partial(open_work, pages_on=pages_on)), gather_seconds=GATHER_SECONDS)
    app.every(1, jobs.send_messages, follows_commits=True)
    app.every(2, jobs.note_results)
    app.every(600, jobs.end_old)
    app.every(1800, jobs.note_missed)
    app.every(3600, jobs.erase_numbers)


async def _require_store(app: App, settings: MyPageSettings) -> None:
    """Raises SettingRefused if the pages are elsewhere: this service would serve old ones, and nobody would know."""
    place = await app.database.autocommit.fetchval(PLACE)
    if (place == "postgres") != (settings.store == "postgres"):
        raise SettingRefused(
            f"The setting MYPAGE_STORE is {settings.store}, but the pages are in {place}: change the setting, or move "
            f"them with `gotohotel rebuild --store {settings.store}`."
        )


if __name__ == "__main__":
    adapters = tuple(f"MYPAGE_{name.upper()}_" for name in PROVIDERS)
    run(MyPageSettings, "MYPAGE", compose, folder=Path(__file__).parent, others=adapters)
