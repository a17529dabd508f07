"""The operator's command line."""

import argparse
import asyncio
import os
import sys
from collections.abc import Callable, Coroutine, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import asyncpg

from ops.errors import StackError
from ops.services import SERVICES
from ops.stack import PROCESSES, Stack

if TYPE_CHECKING:
    from ops.dead_letters import DeadLetter


MIB = 1024**2


def main(arguments: Sequence[str] | None = None) -> None:
    """`gotohotel …`: ends with status 0, or with one sentence and another status."""
    options = _parser().parse_args(arguments)
    try:
        options.run(Stack.from_environment(), options)
    except StackError as error:
        sys.exit(f"gotohotel: {error}")
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        sys.exit(f"gotohotel: a part of the stack can't be reached; see `make status`: {_words(error)}")


def _words(error: Exception) -> str:
    return str(error) or type(error).__name__


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="gotohotel", description="Runs and inspects a GotoHotel.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: object, help_: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=help_, description=help_)
        added.set_defaults(run=run)
        return added

    command("up", up, "start the embedded stack in the background")
    command("down", down, "stop it; data stays")
    command("migrate", migrate, "bring roles, databases, schemas and streams to this release; `up` does it too")
    command("status", status, "name, state, pid and port of each process")
    logs_ = command("logs", logs, "show the logs as they grow")
    logs_.add_argument("service", nargs="?", choices=PROCESSES, help="only of this process")
    for name, run in (("start", start), ("stop", stop)):
        command(name, run, f"{name} one process").add_argument("service", choices=PROCESSES)
    token_ = command("token", token, "print a token for the gateway")
    token_.add_argument("--role", choices=("guest", "desk"), default="guest")
    token_.add_argument("--sub", default="guest", help="whose token")
    command("demo", demo, "the main job as a story, over HTTP through the gateway")
    command("audit", audit, "check the invariants against databases, ledger and stream")
    letters_ = command("dead-letters", list_letters, "events that a service could not handle")
    acts = letters_.add_subparsers(required=True, metavar="ACT")
    for name, act, help_ in (
        ("list", list_letters, "number, time, service, event, order and reason of each"),
        ("show", show_letter, "all that is known of one"),
        ("redrive", redrive_letters, "send them again, after what was wrong is mended"),
        ("drop", drop_letters, "forget them"),
    ):
        added = acts.add_parser(name, help=help_, description=help_)
        added.set_defaults(run=act)
        if name == "show":
            added.add_argument("number", type=int)
        elif name != "list":
            added.add_argument("numbers", type=int, nargs="*", metavar="number")
        if name == "redrive":
            added.add_argument("--all", action="store_true", help="instead of numbers; narrowed by the next two")
            added.add_argument("--service", choices=SERVICES, help="only what this service could not handle")
            added.add_argument("--reason", default="", metavar="TEXT", help="only where the reason holds this text")
    stream_ = command("stream", show_stream, "how full the stream of events is, and who lags behind")
    acts = stream_.add_subparsers(metavar="ACT")
    grow_ = acts.add_parser("grow", help="give it more room")
    grow_.add_argument("--mib", type=int, required=True, help="how many MiB it may hold then")
    grow_.set_defaults(run=grow_stream)
    archive_ = acts.add_parser("archive", help="move old events into files, which audit and rebuild read too")
    archive_.add_argument("--older-than-days", type=float, default=90, metavar="DAYS", help="90 if left out")
    archive_.set_defaults(run=archive_stream)
    republish_ = command("republish", republish, "publish kept events again, after the stream has lost some")
    for end in ("--from", "--to"):
        republish_.add_argument(
            end, dest=f"{end[2:]}_", type=_point_in_time, required=True, metavar="TIME", help="ISO 8601"
        )
    command("rebuild", rebuild, "build My page anew from the first event, while the old one serves")
    return parser


def _point_in_time(text: str) -> datetime:
    """ISO 8601; without an offset it is UTC."""
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no time as 2026-05-01T10:00") from None
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def up(stack: Stack, _: argparse.Namespace) -> None:
    """Starts and says where everything is."""
    stack.up()
    print(f"The gateway answers at {stack.gateway_url} (JSON and gRPC).")
    print(f"Data, logs and configuration are in {os.path.relpath(stack.home)}/.\n")
    _print_status(stack)


def down(stack: Stack, _: argparse.Namespace) -> None:
    """Stops everything."""
    stack.down()
    print("Everything has stopped; data is kept.")


def migrate(stack: Stack, _: argparse.Namespace) -> None:
    """Brings the data to this release."""
    _refuse_if_down(stack)
    stack.migrate()
    print("Roles, databases, schemas and streams are those of this release.")


def status(stack: Stack, _: argparse.Namespace) -> None:
    """Shows every process."""
    _print_status(stack)


def _print_status(stack: Stack) -> None:
    print(f"{'name':<16} {'state':<9} {'pid':>8} {'port':>6}")
    for name, state, pid, port in stack.status():
        print(f"{name:<16} {state:<9} {pid or '-':>8} {port:>6}")


def logs(stack: Stack, options: argparse.Namespace) -> None:
    """Follows the logs until interrupted."""
    chosen = [options.service] if options.service else list(PROCESSES)
    files = [str(stack.home / "log" / f"{name}.log") for name in chosen]
    os.execvp("tail", ["tail", "-n", "20", "-F", *files])  # noqa: S606 - tail takes over, and gets Ctrl-C


def start(stack: Stack, options: argparse.Namespace) -> None:
    """Starts one process."""
    stack.start(options.service)
    print(f"{options.service} runs.")


def stop(stack: Stack, options: argparse.Namespace) -> None:
    """Stops one process."""
    stack.stop(options.service)
    print(f"{options.service} has stopped.")


def token(stack: Stack, options: argparse.Namespace) -> None:
    """Prints a token."""
    print(stack.token(subject=options.sub, role=options.role))


def demo(stack: Stack, _: argparse.Namespace) -> None:
    """Tells the story; its own stack goes down again with it."""
    from ops.demo import tell

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


def audit(stack: Stack, _: argparse.Namespace) -> None:
    """Reports every invariant."""
    from ops.audit import report

    _refuse_if_down(stack)
    if not report(stack):
        sys.exit(1)


def list_letters(stack: Stack, _: argparse.Namespace) -> None:
    """A line for each dead letter."""
    from ops import dead_letters

    _refuse_if_down(stack)
    letters = asyncio.run(dead_letters.every(stack))
    for letter in letters:
        event = letter.subject.rsplit(".", 1)[-1]
        print(f"{letter.number:>6}  {_when(letter):<20} {letter.consumer:<16} {event:<20} {letter.aggregate}")
        print(f"        {letter.reason}")
    print(f"{len(letters)} dead letters")


def show_letter(stack: Stack, options: argparse.Namespace) -> None:
    """Everything about one."""
    from ops import dead_letters

    _refuse_if_down(stack)
    letter = asyncio.run(dead_letters.get(stack, options.number))
    print(f"number: {letter.number}\nburied: {_when(letter)}")
    for name, value in letter.headers.items():
        print(f"{name}: {value}")
    print(f"\n{letter.text}")


def redrive_letters(stack: Stack, options: argparse.Namespace) -> None:
    """Sends them again."""
    from ops import dead_letters

    _refuse_if_down(stack)
    numbers = options.numbers
    if options.all == bool(numbers):
        raise StackError("Name the dead letters' numbers, or --all of them.")
    if not options.all and (options.service or options.reason):
        raise StackError("--service and --reason go with --all.")
    if options.all:
        letters = asyncio.run(dead_letters.every(stack))
        chosen = (each for each in letters if options.service in (None, each.consumer))
        numbers = [each.number for each in chosen if options.reason in each.reason]
    _each(numbers, lambda number: dead_letters.redrive(stack, number), "{0.subject} is on its way again.")
    if options.all:
        print(f"{len(numbers)} dead letters are on their way again.")


def drop_letters(stack: Stack, options: argparse.Namespace) -> None:
    """Forgets them."""
    from ops import dead_letters

    _refuse_if_down(stack)
    if not options.numbers:
        raise StackError("Name the numbers of the dead letters to forget.")
    _each(options.numbers, lambda number: dead_letters.drop(stack, number), "{0.subject} is dropped.")


def _each(numbers: Sequence[int], act: Callable[[int], Coroutine[Any, Any, object]], done: str) -> None:
    """Goes on with the others if one does not exist, and fails in the end."""
    missing = []
    for number in numbers:
        try:
            print(f"{number}: {done.format(asyncio.run(act(number)))}")
        except StackError as error:
            missing.append(str(error))
    if missing:
        raise StackError("\n".join(missing))


def _when(letter: "DeadLetter") -> str:
    return _at(letter.buried_at)


def show_stream(stack: Stack, _: argparse.Namespace) -> None:
    """How full it is."""
    from ops import stream

    _refuse_if_down(stack)
    usage = asyncio.run(stream.usage(stack))
    left = "" if usage.days_left is None else f"; full in {usage.days_left:.1f} days at the rate since the first one"
    print(f"events     {usage.messages}, from {_at(usage.first_at)} to {_at(usage.last_at)}")
    print(f"room       {usage.used_bytes / MIB:.1f} of {usage.max_bytes / MIB:.0f} MiB{left}")
    print(f"archived   {usage.archived}")
    print(f"disk       {usage.free_disk_bytes / MIB:.0f} MiB free")
    for consumer, behind in sorted(usage.behind.items()):
        print(f"{consumer:<16} {behind} events behind")


def grow_stream(stack: Stack, options: argparse.Namespace) -> None:
    """Gives it more room."""
    from ops import stream

    _refuse_if_down(stack)
    before = asyncio.run(stream.grow(stack, options.mib * MIB))
    print(f"The stream may hold {options.mib} MiB; it was {before / MIB:.0f}. What waited goes out now.")


def archive_stream(stack: Stack, options: argparse.Namespace) -> None:
    """Moves old events into files."""
    from ops import stream

    _refuse_if_down(stack)
    if not 0 <= options.older_than_days <= 36_500:
        raise StackError("--older-than-days takes 0 to 36500.")
    before = datetime.now(UTC) - timedelta(days=options.older_than_days)
    moved = asyncio.run(stream.archive(stack, before))
    print(f"{moved} events have moved to {os.path.relpath(stack.archive)}/.")


def _at(time: datetime | None) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%SZ") if time else "?"


def republish(stack: Stack, options: argparse.Namespace) -> None:
    """Has events sent again."""
    from ops.republish import republish as republish_between

    _refuse_if_down(stack)
    for service, count in asyncio.run(republish_between(stack, options.from_, options.to_)).items():
        print(f"{service}: {count} events go out again.")


def rebuild(stack: Stack, _: argparse.Namespace) -> None:
    """Rebuilds My page."""
    from ops.rebuild import rebuild as rebuild_pages

    _refuse_if_down(stack)
    events, skipped = asyncio.run(rebuild_pages(stack))
    print(f"My page was rebuilt from {events} events." + (f" {skipped} can't be applied." if skipped else ""))


def _refuse_if_down(stack: Stack) -> None:
    if not stack.is_up:
        raise StackError("The stack is not up: run `make up` first.")


if __name__ == "__main__":
    main()
