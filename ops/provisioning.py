"""Brings PostgreSQL and NATS to what this release declares: roles, databases, schemas, streams and consumers."""

import asyncio
from importlib import import_module
from pathlib import Path
from typing import Any

import gotohotel
from gotohotel.bus.connection import Bus
from gotohotel.bus.consumer import Consumer
from gotohotel.bus.streams import DeclarationDiffers
from gotohotel.database import open_database
from gotohotel.policies import Policies
from gotohotel.schema import KERNEL_MIGRATIONS, migrate
from ops import nats_server, page_store, postgres
from ops.addresses import Addresses
from ops.errors import StackError
from ops.services import LISTENERS, MYPAGE, SERVICES, owner


def service_folder(name: str) -> Path:
    """The folder of a service's code and migrations."""
    return Path(gotohotel.__file__).parents[1] / name


async def provision(addresses: Addresses, *, stream_bytes: int, stream_replicas: int = 1) -> None:
    """Creates what is missing and changes what differs. Safe to repeat.

    Raises StackError if a stream can't be created, or differs in a way that can't be changed.
    """
    async with nats_server.as_operator(addresses.nats_url()) as js:
        # First: services that wait for their schema find the streams, and make none of their own.
        await nats_server.declare_streams(js, events_bytes=stream_bytes, replicas=stream_replicas)
        await postgres.provision(addresses.database_url, addresses.credentials.all())
        for name in SERVICES:
            migrations = service_folder(name) / "migrations"
            await migrate(addresses.database_url(name, owner(name)), KERNEL_MIGRATIONS, migrations)
        await page_store.declare(addresses.database_url(MYPAGE, owner(MYPAGE)), js)
    for name in LISTENERS:
        await _declare_consumer(addresses, name)


CONNECT_SECONDS = 10


async def _declare_consumer(addresses: Addresses, name: str) -> None:
    policies: Policies[Any] = import_module(f"{name}.policies").policies
    bus = Bus(addresses.nats_url(), name=name)  # the operator's: a running NATS may not know a new service's user yet
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            await bus.connect(asyncio.Event())
        async with open_database(addresses.database_url(name, name), name=name, pool_size=2) as database:
            await Consumer(bus, policies, database).declare()
    except DeclarationDiffers as error:
        raise StackError(f"The {error}: this release can't use it as it is.") from None
    finally:
        await bus.close()
