"""The operator's command line: `gotohotel …`."""

import sys
from collections.abc import Sequence

import asyncpg
import nats.errors
import typer

from ops.commands import cluster, events, stack
from ops.errors import StackError

app = typer.Typer(
    name="gotohotel",
    help="Runs and inspects a GotoHotel.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(stack.app)
app.add_typer(events.app)
app.add_typer(cluster.app)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a command. Exits with 0, or prints one sentence and exits with another status."""
    try:
        app(args=arguments, prog_name="gotohotel")
    except StackError as error:
        sys.exit(f"gotohotel: {error}")
    except (asyncpg.PostgresSyntaxError, asyncpg.IntegrityConstraintViolationError) as error:
        sys.exit(f"gotohotel: PostgreSQL refuses a statement: {error}")
    except (OSError, TimeoutError, nats.errors.Error, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        words = str(error) or type(error).__name__
        sys.exit(f"gotohotel: a part of the stack can't be reached; see `make status`: {words}")


if __name__ == "__main__":
    main()
