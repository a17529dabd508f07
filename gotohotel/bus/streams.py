"""The streams and consumers that this release declares."""

import logging
from collections.abc import Sequence, Set
from typing import Any

from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy, DiscardPolicy, StorageType, StreamConfig
from nats.js.errors import NotFoundError

logger = logging.getLogger(__name__)

ACK_WAIT_SECONDS = 10.0  # longer than a batch takes; redelivery after a kill takes this long
# Events that are handed back for a newer release stay unacknowledged; they must not block the others.
MAX_UNACKNOWLEDGED = 100_000

# Holds every event until an operator moves the oldest to the archive. A full stream refuses new events (the rows wait
# in their outbox) and discards none. The operator decides its size; this is the default for a stream that does not
# exist yet.
EVENTS = StreamConfig(
    name="EVENTS",
    subjects=["gotohotel.*.v1.*"],
    storage=StorageType.FILE,
    discard=DiscardPolicy.NEW,
    max_bytes=1024**3,
    duplicate_window=600,
    allow_direct=True,
)
DEAD_LETTERS = StreamConfig(
    name="DEAD_LETTERS",
    subjects=["dead.*"],
    storage=StorageType.FILE,
    discard=DiscardPolicy.NEW,
    max_bytes=256 * 1024**2,
    duplicate_window=600,
    allow_direct=True,
)


class DeclarationDiffers(Exception):
    """A stream or consumer on the server differs from what this release declares."""


async def declare_stream(js: JetStreamContext, wanted: StreamConfig) -> None:
    """Creates the stream if it does not exist. Raises DeclarationDiffers."""
    try:
        current = (await js.stream_info(str(wanted.name))).config
    except NotFoundError:
        # Replicas may declare at the same time: adding an identical stream again is no error.
        current = (await js.add_stream(wanted)).config
    _refuse_difference("stream", wanted, current, but={"max_bytes"})  # the operator decides the size


async def declare_consumer(js: JetStreamContext, name: str, subjects: Sequence[str]) -> list[str]:
    """Creates the durable consumer, or widens its filter and updates its operational settings.

    Returns the subjects that were added to an existing one. Raises DeclarationDiffers.

    A newer release may have subscribed to more subjects: those stay, and events that only it knows are handed back to
    it. For an added subject, delivery begins with the events published from then on.
    """
    wanted = ConsumerConfig(
        durable_name=name,
        filter_subjects=list(subjects),
        deliver_policy=DeliverPolicy.ALL,
        ack_policy=AckPolicy.EXPLICIT,
        ack_wait=ACK_WAIT_SECONDS,
        max_ack_pending=MAX_UNACKNOWLEDGED,
        max_deliver=-1,
    )
    stream = str(EVENTS.name)
    try:
        current = (await js.consumer_info(stream, name)).config
    except NotFoundError:
        current = (await js.add_consumer(stream, wanted)).config
    subscribed = set(current.filter_subjects or [current.filter_subject or ""]) - {""}
    _refuse_difference("consumer", wanted, current, but={"filter_subjects", "ack_wait", "max_ack_pending"})
    added = sorted(set(subjects) - subscribed)
    if added or (current.ack_wait, current.max_ack_pending) != (wanted.ack_wait, wanted.max_ack_pending):
        logger.info("consumer %s: brought up to date; new subjects: %s", name, added)
        await js.add_consumer(stream, wanted.evolve(filter_subjects=sorted({*subscribed, *subjects})))
    return added


def _refuse_difference(kind: str, wanted: StreamConfig | ConsumerConfig, current: Any, *, but: Set[str]) -> None:
    """Raises DeclarationDiffers.

    Without it a difference would never show: pull_subscribe keeps an existing consumer's configuration.
    """
    for field, value in vars(wanted).items():
        if field not in but and value is not None and getattr(current, field) != value:
            name = getattr(wanted, "name", None) or getattr(wanted, "durable_name", "")
            raise DeclarationDiffers(f"{kind} {name}: {field} is {getattr(current, field)!r}, declared {value!r}")
