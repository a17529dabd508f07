"""Puts pay_svc together and runs it."""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from gotohotel.app import App, run
from gotohotel.pay.v1 import pay_service_pb2
from gotohotel.settings import PublicKey, Settings, Text, Timeout
from gotohotel.signatures import VerifyKey
from pay_svc.domain import AttemptLimits
from pay_svc.jobs import Jobs
from pay_svc.processor import PROCESSORS
from pay_svc.server import PayServer
from pay_svc.store import ERASE_NUMBERS, PostgresPayments


class PaySettings(Settings):
    """PAY_… in the environment."""

    processor: Annotated[str, Field(pattern=f"^({'|'.join(PROCESSORS)})$")] = (
        "sandbox"  # the adapter; it has its own settings
    )
    fingerprint_key: Text  # key of the hashes of card numbers
    order_key: PublicKey  # order_svc's, which signs what may be charged
    currency: Annotated[str, Field(pattern=r"^[A-Z]{3}$")] = "KRW"  # of a payment that is canceled before any charge
    processor_timeout_seconds: Timeout = 2.0
    settle_every_seconds: Timeout = 2.0
    max_declines_of_an_order: Annotated[int, Field(ge=1, le=10_000)] = 5
    max_declines_of_a_guest: Annotated[int, Field(ge=1, le=10_000)] = 10  # in an hour


async def compose(app: App, settings: PaySettings) -> None:
    """Wires the service together."""
    processor = await app.resources.enter_async_context(PROCESSORS[settings.processor]())
    server = PayServer(
        app.database,
        processor,
        fingerprint_key=settings.fingerprint_key.encode(),
        order_key=VerifyKey(settings.order_key),
        currency=settings.currency,
        limits=AttemptLimits(
            declines_of_an_order=settings.max_declines_of_an_order,
            declines_of_a_guest=settings.max_declines_of_a_guest,
        ),
        processor_timeout_seconds=settings.processor_timeout_seconds,
        clock=app.clock.now,
    )
    jobs = Jobs(
        app.database,
        PostgresPayments(app.database.autocommit),
        processor,
        processor_timeout_seconds=settings.processor_timeout_seconds,
        clock=app.clock.now,
    )
    app.serve(pay_service_pb2.DESCRIPTOR.services_by_name["PayService"], server)
    app.every(settings.settle_every_seconds, jobs.settle_payments)
    app.every(3600, jobs.prune_guests)
    app.erase_numbers(ERASE_NUMBERS)


if __name__ == "__main__":
    adapters = tuple(f"PAY_{name.upper()}_" for name in PROCESSORS)
    run(PaySettings, "PAY", compose, folder=Path(__file__).parent, others=adapters)
