"""The operator's command line."""

import argparse
import os
import sys
from collections.abc import Sequence

from ops.errors import StackError
from ops.stack import PROCESSES, Stack


def main(arguments: Sequence[str] | None = None) -> None:
    """`gotohotel …`: ends with status 0, or with one sentence and another status."""
    options = _parser().parse_args(arguments)
    try:
        options.run(Stack.from_environment(), options)
    except StackError as error:
        sys.exit(f"gotohotel: {error}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="gotohotel", description="Runs and inspects a GotoHotel.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: object, help_: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=help_, description=help_)
        added.set_defaults(run=run)
        return added

    command("up", up, "start the embedded stack in the background")
    command("down", down, "stop it; data stays")
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
    return parser


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

    if not stack.is_up:
        raise StackError("The stack is not up: run `make up` first.")
    if not report(stack):
        sys.exit(1)


if __name__ == "__main__":
    main()
