"""Dead letters: events that a consumer could not handle, with the reason, until an operator redrives or drops them."""

from dataclasses import dataclass
from datetime import datetime

from google.protobuf.message import DecodeError
from google.protobuf.text_format import MessageToString
from nats.js import JetStreamContext
from nats.js.errors import BadRequestError, NotFoundError

from gotohotel.bus.consumer import REDRIVE_FOR
from gotohotel.bus.streams import DEAD_LETTERS, EVENTS
from ops.addresses import Addresses
from ops.errors import StackError
from ops.events import TYPES
from ops.stream import jetstream

ADDED_BY_THE_BURIAL = "x-dead-"


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """One event that one consumer could not handle. `number` is its sequence number in the stream of dead letters."""

    number: int
    time: datetime | None
    headers: dict[str, str]
    payload: bytes

    @property
    def subject(self) -> str:
        """The original subject, which is the event's full name."""
        return self.headers.get("x-dead-subject", "")

    @property
    def consumer(self) -> str:
        """The service that could not handle it."""
        return self.headers.get("x-dead-consumer", "")

    @property
    def reason(self) -> str:
        """Why it could not be handled."""
        return self.headers.get("x-dead-reason", "")

    @property
    def aggregate(self) -> str:
        """The id of its aggregate: an order's id, or a room type."""
        return self.headers.get("ce-subject", "")

    @property
    def text(self) -> str:
        """The event as JSON, or its bytes if it can't be parsed."""
        try:
            return MessageToString(TYPES[self.subject].FromString(self.payload))
        except (KeyError, DecodeError):
            return self.payload.hex(" ")


async def every(stack: Addresses) -> list[DeadLetter]:
    """All dead letters, oldest first."""
    async with jetstream(stack) as js:
        state = (await js.stream_info(str(DEAD_LETTERS.name))).state
        letters = []
        for number in range(max(1, state.first_seq), state.last_seq + 1):  # a stream that was always empty begins at 0
            try:
                letters.append(await _get(js, number))
            except NotFoundError:
                continue  # dropped or redriven
        return letters


async def get(stack: Addresses, number: int) -> DeadLetter:
    """One dead letter. Raises StackError if there is none of that number."""
    async with jetstream(stack) as js:
        return await _find(js, number)


async def redrive(stack: Addresses, number: int) -> DeadLetter:
    """Sends the event again, to the service that could not handle it. Safe to repeat."""
    async with jetstream(stack) as js:
        letter = await _find(js, number)
        headers = {name: value for name, value in letter.headers.items() if not name.startswith(ADDED_BY_THE_BURIAL)}
        # For ten minutes the stream would take the event's own id for a duplicate; the inbox uses ce-id.
        headers["Nats-Msg-Id"] = f"redrive/{DEAD_LETTERS.name}/{number}"
        headers.pop("Nats-Expected-Stream", None)
        headers[REDRIVE_FOR] = letter.consumer
        await js.publish(letter.subject, letter.payload, stream=EVENTS.name, headers=headers)
        await js.delete_msg(str(DEAD_LETTERS.name), number)
        return letter


async def drop(stack: Addresses, number: int) -> DeadLetter:
    """Deletes a dead letter: that consumer will never handle its event."""
    async with jetstream(stack) as js:
        letter = await _find(js, number)
        await js.delete_msg(str(DEAD_LETTERS.name), number)
        return letter


async def _find(js: JetStreamContext, number: int) -> DeadLetter:
    try:
        return await _get(js, number)
    except (NotFoundError, BadRequestError):  # NATS's answer for numbers up to 0
        raise StackError(f"There is no dead letter {number}; `gotohotel dead-letters list` shows all.") from None


async def _get(js: JetStreamContext, number: int) -> DeadLetter:
    message = await js.get_msg(str(DEAD_LETTERS.name), number)
    return DeadLetter(
        number=number, time=message.time, headers=dict(message.headers or {}), payload=message.data or b""
    )
