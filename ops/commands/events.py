"""Commands about events: the stream, dead letters, publishing again, rebuilding My page."""

import asyncio
import os
from collections.abc import Callable, Coroutine, Sequence
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Annotated, Any

import typer
import uvloop

from ops import console, dead_letters
from ops import stream as streams
from ops.commands.stack import point_in_time, running_hotel
from ops.errors import StackError
from ops.forget import forget_guest, forget_numbers
from ops.page_store import STORES
from ops.rebuild import rebuild as rebuild_pages
from ops.republish import republish as republish_between
from ops.services import SERVICES

MIB = 1024**2
StoreName = StrEnum("StoreName", {name: name for name in STORES})  # type: ignore[misc]  # the table of stores
ServiceName = StrEnum("ServiceName", {name: name for name in SERVICES})  # type: ignore[misc]  # the services' table

app = typer.Typer()
letters = typer.Typer(help="Events that a service could not handle.", no_args_is_help=True)
stream = typer.Typer(invoke_without_command=True)
app.add_typer(letters, name="dead-letters")
app.add_typer(stream, name="stream")

Numbers = Annotated[list[int] | None, typer.Argument(metavar="[NUMBER]...")]


@letters.command("list")
def list_letters() -> None:
    """Lists number, time, service, event, order and reason of each dead letter."""
    found = asyncio.run(dead_letters.every(running_hotel()))
    for letter in found:
        event = letter.subject.rsplit(".", 1)[-1]
        print(f"{letter.number:>6}  {_at(letter.time):<20} {letter.consumer:<16} {event:<20} {letter.aggregate}")
        print(f"        {letter.reason}")
    print(f"{len(found)} dead letters")


@letters.command("show")
def show_letter(number: int) -> None:
    """Shows one dead letter in full."""
    letter = asyncio.run(dead_letters.get(running_hotel(), number))
    print(f"number: {letter.number}\ntime: {_at(letter.time)}")
    for name, value in letter.headers.items():
        print(f"{name}: {value}")
    print(f"\n{letter.text}")


@letters.command("redrive")
def redrive_letters(
    numbers: Numbers = None,
    every: Annotated[
        bool, typer.Option("--all", help="Instead of numbers; narrowed by --service and --reason.")
    ] = False,
    service: Annotated[ServiceName | None, typer.Option(help="Only what this service could not handle.")] = None,
    reason: Annotated[str, typer.Option(metavar="TEXT", help="Only where the reason holds this text.")] = "",
) -> None:
    """Sends dead letters again, once their cause is repaired."""
    stack = running_hotel()
    chosen = numbers or []
    if every == bool(chosen):
        raise StackError("Name the dead letters' numbers, or --all of them.")
    if not every and (service or reason):
        raise StackError("--service and --reason go with --all.")
    if every:
        found = asyncio.run(dead_letters.every(stack))
        chosen = [each.number for each in found if service in (None, each.consumer) and reason in each.reason]
    _each(chosen, lambda number: dead_letters.redrive(stack, number), "{0.subject} is on its way again.")
    if every:
        print(f"{len(chosen)} dead letters are on their way again.")


@letters.command("drop")
def drop_letters(numbers: Numbers = None) -> None:
    """Deletes dead letters."""
    stack = running_hotel()
    if not numbers:
        raise StackError("Name the numbers of the dead letters to delete.")
    _each(numbers, lambda number: dead_letters.drop(stack, number), "{0.subject} is dropped.")


def _each(numbers: Sequence[int], act: Callable[[int], Coroutine[Any, Any, object]], done: str) -> None:
    """Continues with the others if one does not exist, and fails at the end."""
    missing = []
    with console.progress("dead letters", len(numbers)) as advance:
        for number in numbers:
            try:
                print(f"{number}: {done.format(asyncio.run(act(number)))}")
            except StackError as error:
                missing.append(str(error))
            advance(1)
    if missing:
        raise StackError("\n".join(missing))


@stream.callback()
def show_stream(context: typer.Context) -> None:
    """Shows how full the stream of events is and how far consumers are behind; manages its size and archive."""
    if context.invoked_subcommand:
        return
    usage = asyncio.run(streams.usage(running_hotel()))
    left = "" if usage.days_left is None else f"; full in {usage.days_left:.1f} days at the rate since the first one"
    print(f"events     {usage.messages}, from {_at(usage.first_at)} to {_at(usage.last_at)}")
    print(f"room       {usage.used_bytes / MIB:.1f} of {usage.max_bytes / MIB:.0f} MiB{left}")
    print(f"archived   {usage.archived}")
    print(f"disk       {usage.free_disk_bytes / MIB:.0f} MiB free\n")
    behind = console.table("consumer", "events behind", right=("events behind",))
    for consumer, count in sorted(usage.behind.items()):
        behind.add_row(consumer, str(count))
    console.show(behind)


@stream.command("grow")
def grow_stream(mib: Annotated[int, typer.Option(help="How many MiB it may hold then.")]) -> None:
    """Raises the stream's size limit."""
    before = asyncio.run(streams.grow(running_hotel(), mib * MIB))
    print(f"The stream may hold {mib} MiB; it was {before / MIB:.0f}. Waiting events are being published.")


@stream.command("archive")
def archive_stream(
    older_than_days: Annotated[float, typer.Option(min=0, max=36_500, metavar="DAYS", help="Age of an event.")] = 90,
) -> None:
    """Moves old events into files, which audit and rebuild read too."""
    stack = running_hotel()
    moved = asyncio.run(streams.archive(stack, datetime.now(UTC) - timedelta(days=older_than_days)))
    print(f"{moved} events have moved to {os.path.relpath(stack.archive)}/.")


@app.command()
def republish(
    begins: Annotated[datetime, typer.Option("--from", parser=point_in_time, metavar="TIME", help="ISO 8601.")],
    ends: Annotated[datetime, typer.Option("--to", parser=point_in_time, metavar="TIME", help="ISO 8601.")],
) -> None:
    """Publishes stored events again, after the stream has lost some."""
    stack = running_hotel()
    with console.progress("events") as advance:
        counts = asyncio.run(republish_between(stack, begins, ends, advance=advance))
    for service, count in counts.items():
        print(f"{service}: {count} events go out again.")


@app.command()
def rebuild(
    store: Annotated[
        StoreName | None, typer.Option(help="Moves the pages there; restart mypage_svc with MYPAGE_STORE afterwards.")
    ] = None,
) -> None:
    """Rebuilds My page from the first event, while the old pages are served. After an interruption it goes on."""
    stack = running_hotel()
    with console.progress("events") as progress:
        done = uvloop.run(rebuild_pages(stack, progress=progress, store=store or ""))
    before = f" ({done.resumed} of them before it was interrupted)" if done.resumed else ""
    skipped = f" {done.skipped} can't be applied." if done.skipped else ""
    print(f"My page was rebuilt from {done.events} events{before}.{skipped}")


@app.command()
def forget(
    subject: Annotated[str, typer.Option(help="A guest, as in the tokens.")] = "",
    stays_over: Annotated[
        int | None, typer.Option(min=1, max=36_500, metavar="DAYS", help="Stays that ended this long ago.")
    ] = None,
) -> None:
    """Erases a guest's name and phone number everywhere, or the phone numbers in the events of past stays."""
    stack = running_hotel()
    if bool(subject) == (stays_over is not None):
        raise StackError("Name either a guest (--subject) or the age of stays (--stays-over).")
    if stays_over is not None:
        count = asyncio.run(forget_numbers(stack, (datetime.now(UTC) - timedelta(days=stays_over)).date()))
        print(f"{count} events have no phone number any more.")
        return
    done = asyncio.run(forget_guest(stack, subject))
    print(f"{len(done.orders)} orders and {done.events} events have no name and no phone number any more.")
    if done.kept:
        raise StackError(
            f"{len(done.kept)} orders are kept, because their stay is not over: {', '.join(done.kept)}. "
            "Cancel them first, or run it again afterwards."
        )


def _at(time: datetime | None) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%SZ") if time else "?"
