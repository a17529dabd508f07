"""Carries the W3C trace context of a request through the outbox to the handlers of its events."""

import re
import secrets
from collections.abc import Mapping
from contextvars import ContextVar

# By aggregate: a batch of events handles many requests' traces at once. "" is the trace of everything else.
_traces: ContextVar[Mapping[str, str]] = ContextVar("traces")
_TRACEPARENT = re.compile(r"00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


def enter(traceparent: str | None) -> None:
    """Continues the caller's trace in this task, or begins one if there is none worth continuing."""
    valid = traceparent and _TRACEPARENT.fullmatch(traceparent)
    _traces.set({"": traceparent if traceparent and valid else _new()})


def enter_batch(traces: Mapping[str, str]) -> None:
    """Continues the traces of a batch of events, by aggregate."""
    _traces.set(traces)


def of(aggregate_id: str) -> str:
    """The traceparent that an event of this aggregate bears."""
    traces = _traces.get({})
    known = traces.get(aggregate_id) or traces.get("")
    return known or _new()


def _new() -> str:
    return f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-01"
