"""Commands about the stack and its processes."""

import os
import sys
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from ops import console
from ops.backup import LATER, back_up, restore
from ops.cluster import Cluster
from ops.configuration import PROCESSES
from ops.errors import StackError
from ops.stack import Stack

MAX_SHOWN = 100  # events after a backup, on the terminal

app = typer.Typer()
ProcessName = StrEnum("ProcessName", {name: name for name in PROCESSES})  # type: ignore[misc]  # the services' table


class Role(StrEnum):
    """The role that a token grants."""

    GUEST = "guest"
    DESK = "desk"


def running_hotel() -> Stack | Cluster:
    """The hotel of this environment. Raises StackError if it is a stack that is not running."""
    return Cluster.from_environment() or running_stack()


def running_stack() -> Stack:
    """The stack of this environment. Raises StackError if it is not running."""
    stack = Stack.from_environment()
    if not stack.is_up:
        raise StackError("The stack is not up: run `make up` first.")
    return stack


def point_in_time(text: str) -> datetime:
    """ISO 8601; without an offset it is UTC."""
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is no time as 2026-05-01T10:00") from None
    return time if time.tzinfo else time.replace(tzinfo=UTC)


@app.command()
def up() -> None:
    """Starts the embedded stack in the background."""
    stack = Stack.from_environment()
    stack.up()
    print(f"The gateway answers at {stack.gateway_url} (JSON and gRPC).")
    print(f"Data, logs and configuration are in {os.path.relpath(stack.home)}/.\n")
    status()


@app.command()
def down() -> None:
    """Stops the stack; data is kept."""
    Stack.from_environment().down()
    print("Everything has stopped; data is kept.")


@app.command()
def migrate() -> None:
    """Updates roles, databases, schemas, streams and consumers to this release; `up` does it too."""
    running_hotel().migrate()
    print("Roles, databases, schemas, streams and consumers are those of this release.")


@app.command()
def status() -> None:
    """Shows name, state, pid and port of each process."""
    shown = console.table("name", "state", "pid", "port", right=("pid", "port"))
    for name, state, pid, port in Stack.from_environment().status():
        shown.add_row(name, state, str(pid or "-"), str(port))
    console.show(shown)


@app.command()
def logs(process: Annotated[ProcessName | None, typer.Argument(help="Only of this process.")] = None) -> None:
    """Shows the logs as they grow, until interrupted."""
    stack = Stack.from_environment()
    files = [str(stack.home / "log" / f"{name}.log") for name in ([process] if process else PROCESSES)]
    os.execvp("tail", ["tail", "-n", "20", "-F", *files])  # noqa: S606 - tail takes over, and gets Ctrl-C


@app.command()
def start(process: ProcessName) -> None:
    """Starts one process."""
    Stack.from_environment().start(process.value)
    print(f"{process} runs.")


@app.command()
def stop(process: ProcessName) -> None:
    """Stops one process."""
    Stack.from_environment().stop(process.value)
    print(f"{process} has stopped.")


@app.command()
def token(
    role: Annotated[Role, typer.Option(help="Whom it is for.")] = Role.GUEST,
    sub: Annotated[str, typer.Option(help="The subject.")] = "guest",
) -> None:
    """Prints a token for the gateway."""
    print((Cluster.from_environment() or Stack.from_environment()).token(subject=sub, role=role))


@app.command(name="rotate-key")
def rotate_key() -> None:
    """Signs tokens with a new key from now on. Those of the key before it stay valid until they expire."""
    running_stack().rotate_token_key()
    print("Tokens are signed with a new key. Run it again to make those of the key before it invalid.")


@app.command()
def backup(folder: Annotated[Path, typer.Argument(help="A new folder.")]) -> None:
    """Copies the running hotel into a folder: databases, events, passwords and keys."""
    count = back_up(running_hotel(), folder)
    print(f"The hotel, with {count} events, is in {folder}/.")
    print("It holds passwords, keys and guests' names.")


@app.command(name="restore")
def restore_backup(
    folder: Annotated[Path, typer.Argument(help="Of a backup.")],
    lost: Annotated[
        Path | None, typer.Option(help="Home of a stopped hotel without its database: its stream names later events.")
    ] = None,
) -> None:
    """Makes a running hotel of a backup, in an empty home, and names what came after the backup."""
    stack = Stack.from_environment()
    done = restore(stack, folder, lost=lost)
    print(f"The hotel is restored, with {done.events} events; {done.sent_again} of them are on their way again.")
    if done.later:
        shown = console.table("time", "order", "event")
        for each in done.later[:MAX_SHOWN]:
            shown.add_row(each.time[:19], each.order_id, each.type)
        print(
            f"\n{len(done.later)} events came after the backup. No database knows them; {LATER} in the home has them:\n"
        )
        console.show(shown)
        if len(done.later) > MAX_SHOWN:
            print(f"… and {len(done.later) - MAX_SHOWN} more.")
    print(f"Compare the charges with the card processor's since {done.contents.began_at:%Y-%m-%d %H:%M:%SZ}.")


@app.command()
def demo() -> None:
    """Tells the main job as a story, over HTTP through the gateway; stops the stack if it has started it."""
    from ops.demo import tell

    stack = Stack.from_environment()
    started_here = not stack.is_up
    try:
        print("Starting PostgreSQL, NATS, Envoy and the four services …" if started_here else "The stack is up.")
        stack.up()
        held = tell(stack)
    finally:
        if started_here:
            stack.down()
    if not held:
        sys.exit(1)


@app.command()
def audit(
    since: Annotated[
        datetime | None, typer.Option(parser=point_in_time, metavar="TIME", help="Only orders placed since then.")
    ] = None,
    until: Annotated[
        datetime | None, typer.Option(parser=point_in_time, metavar="TIME", help="Only orders placed before then.")
    ] = None,
) -> None:
    """Checks the invariants against databases, ledger and stream."""
    from ops.audit import Window, report

    if not report(running_hotel(), Window(since, until)):
        sys.exit(1)
