"""Carries the W3C trace context of a request through the outbox to the handlers of its events."""

import re
import secrets
from collections.abc import Mapping
from contextvars import ContextVar

# By aggregate: a batch of events handles several requests' traces at once. "" is the trace of everything else.
_traces: ContextVar[Mapping[str, str]] = ContextVar("traces")
_aggregate: ContextVar[str] = ContextVar("aggregate", default="")
MAX_LOGGED, MAX_ID_LENGTH = 10, 64
_TRACEPARENT = re.compile(r"00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


def enter(traceparent: str | None) -> None:
    """Continues the caller's trace in this task, or starts one if the caller sent none that is valid."""
    valid = traceparent and _TRACEPARENT.fullmatch(traceparent)
    _traces.set({"": traceparent if traceparent and valid else _new()})


def about(aggregate_id: str) -> None:
    """Sets what the current task is about, for the log: an order's id. A text too long for an id counts as none."""
    _aggregate.set(aggregate_id if len(aggregate_id) <= MAX_ID_LENGTH else "")


def log_fields() -> dict[str, object]:
    """The trace_id and aggregate_id for a log line, or those of a batch, ten at most."""
    traces = dict(_traces.get({}))
    current = traces.pop("", "")
    aggregates = [_aggregate.get()] if _aggregate.get() else list(traces)[:MAX_LOGGED]
    trace_ids = [trace.split("-")[1] for trace in (current, *traces.values()) if trace.count("-") == 3][:MAX_LOGGED]
    return {
        **({"trace_id": trace_ids[0] if len(trace_ids) == 1 else trace_ids} if trace_ids else {}),
        **({"aggregate_id": aggregates[0] if len(aggregates) == 1 else aggregates} if aggregates else {}),
    }


def enter_batch(traces: Mapping[str, str]) -> None:
    """Continues the traces of a batch of events, by aggregate."""
    _traces.set(traces)


def of(aggregate_id: str) -> str:
    """The traceparent for an event of this aggregate."""
    traces = _traces.get({})
    known = traces.get(aggregate_id) or traces.get("")
    return known or _new()


def _new() -> str:
    return f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-01"
