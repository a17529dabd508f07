"""Commands that a cluster's pods run, and that work with a stack on one machine too where they make sense there."""

from pathlib import Path
from typing import Annotated

import typer

from ops import cluster, nats_server
from ops.catalogue import open_catalogue
from ops.commands.stack import running_hotel
from ops.services import OPERATOR, SERVICES, nats_password
from ops.smoke import book_and_cancel

NATS_PORT, NATS_MONITORING_PORT = 4222, 8222

app = typer.Typer()


@app.command()
def smoke() -> None:
    """Books a room through the gateway, follows it on My page, and cancels it."""
    order_id = book_and_cancel(running_hotel())
    print(f"Order {order_id} was booked, paid, seen on My page, canceled and refunded.")


@app.command()
def catalogue() -> None:
    """Creates the sample catalogue if the hotel has no room type; waits until it is on sale."""
    hotel = running_hotel()
    for attempt in cluster.patiently():
        with attempt:
            open_catalogue(hotel)
    print("The catalogue is on sale.")


@app.command(name="write-gateway", hidden=True)
def write_gateway(folder: Annotated[Path, typer.Argument(help="Where Envoy reads it.")]) -> None:
    """Writes the configuration of a cluster's gateway."""
    cluster.write_gateway(folder)


@app.command(name="write-nats", hidden=True)
def write_nats(
    file: Annotated[Path, typer.Argument(help="Where NATS reads it.")],
    home: Annotated[Path, typer.Argument(help="Where it keeps its streams.")],
) -> None:
    """Writes the configuration of a cluster's own NATS."""
    credentials = running_hotel().credentials
    passwords = {user: credentials[nats_password(user)] for user in (OPERATOR, *SERVICES)}
    file.touch(mode=0o600)
    file.write_text(
        nats_server.configuration(
            home=home,
            host="0.0.0.0",  # noqa: S104 - in a pod of its own
            port=NATS_PORT,
            monitoring_port=NATS_MONITORING_PORT,
            passwords=passwords,
        )
    )
