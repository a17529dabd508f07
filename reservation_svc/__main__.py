"""Puts reservation_svc together and runs it."""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from gotohotel.app import App, run
from gotohotel.claims import RENEW_SECONDS
from gotohotel.idempotency import IdempotencyStore
from gotohotel.reservation.v1 import reservation_service_pb2
from gotohotel.rpc.client import open_client
from gotohotel.settings import Address, PublicKey, Settings, Text, Timeout
from gotohotel.signatures import VerifyKey
from reservation_svc.clients import GrpcPayments
from reservation_svc.jobs import Jobs
from reservation_svc.policies import ordered, policies
from reservation_svc.server import ReservationServer
from reservation_svc.store import ERASE_NUMBERS, PostgresReservations


class ReservationSettings(Settings):
    """RESERVATION_… in the environment."""

    pay_target: Address  # the gateway's egress listener, host:port
    fingerprint_key: Text  # key of the hashes of request bodies
    order_key: PublicKey  # order_svc's, which signs what may be charged
    pay_timeout_seconds: Timeout = 6.0  # a cancel may have to ask the processor three times
    currency: Annotated[str, Field(pattern=r"^[A-Z]{3}$")] = "KRW"  # the property's
    currency_digits: Annotated[int, Field(ge=0, le=9)] = 0  # decimal places of its amounts (ISO 4217)


async def compose(app: App, settings: ReservationSettings) -> None:
    """Wires the service together."""
    client = await app.resources.enter_async_context(open_client(settings.pay_target, tls_folder=settings.tls_folder))
    requests = IdempotencyStore(app.database, settings.fingerprint_key.encode())
    payments = GrpcPayments(client, timeout_seconds=settings.pay_timeout_seconds)
    server = ReservationServer(
        app.database,
        requests,
        payments,
        currency=settings.currency,
        currency_digits=settings.currency_digits,
        clock=app.clock.now,
    )
    jobs = Jobs(PostgresReservations(app.database.autocommit), payments, clock=app.clock.now)
    app.serve(reservation_service_pb2.DESCRIPTOR.services_by_name["ReservationService"], server)
    unsigned_before = await PostgresReservations(app.database.autocommit).unsigned_before()
    key = VerifyKey(settings.order_key)
    app.listen(policies, require=ordered(key, unsigned_before=unsigned_before, clock=app.clock.now))
    app.every(RENEW_SECONDS, requests.renew)
    app.every(1, jobs.finish_endings, follows_commits=True)
    app.erase_numbers(ERASE_NUMBERS)


if __name__ == "__main__":
    run(ReservationSettings, "RESERVATION", compose, folder=Path(__file__).parent)
