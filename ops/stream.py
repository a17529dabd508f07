"""NATS, as an operator's commands reach it: they say at once when it is away, and miss no message unnoticed."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import nats
import nats.errors
from nats.js import JetStreamContext

from ops.errors import StackError
from ops.stack import Stack


@asynccontextmanager
async def jetstream(stack: Stack) -> AsyncIterator[JetStreamContext]:
    """The streams of a stack. Raises StackError if NATS can't be reached, or goes away meanwhile."""
    try:
        client = await nats.connect(
            stack.nats_url(),
            connect_timeout=3,
            # A connection that breaks must not heal unnoticed: what was on its way in it would be missing.
            allow_reconnect=False,
            max_reconnect_attempts=1,
            reconnect_time_wait=0.2,
            error_cb=_say_nothing,
        )
    except (OSError, TimeoutError, nats.errors.Error) as error:
        raise StackError(f"NATS can't be reached: {str(error) or type(error).__name__}") from None
    try:
        yield client.jetstream()
    except (TimeoutError, nats.errors.Error) as error:
        raise StackError(f"NATS did not answer as it should: {str(error) or type(error).__name__}") from None
    finally:
        await client.close()


async def _say_nothing(_: Exception) -> None:
    """The exception that is raised says it."""
