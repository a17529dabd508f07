"""Logs as JSON lines, with anything that looks like a card number masked."""

import json
import logging
import re
import sys
import traceback
from collections.abc import Iterator

import asyncpg
import structlog
from structlog.stdlib import ProcessorFormatter
from structlog.types import EventDict

from gotohotel import trace
from gotohotel.cards import find_card_numbers

# asyncpg repeats a value that does not fit its parameter.
_VALUE = re.compile(r"(invalid input for query argument \$\d+|invalid input (?:syntax|value) for [^:]*): .*", re.DOTALL)


def mask(text: str) -> str:
    """Replaces card numbers by their last four digits, until those and what follows them are none again."""
    while True:
        masked = text
        for number in find_card_numbers(text):
            masked = masked.replace(number, f"****{number[-4:]}")
        if masked == text:
            return text
        text = masked


def in_short(error: BaseException) -> str:
    """An error's type and message, without the guest's data that PostgreSQL or asyncpg repeat in it."""
    text = str(error.args[0]) if error.args else ""
    return f"{type(error).__name__}: {_without_value(text)}"


def without_rows(error: BaseException | None) -> None:
    """Removes guests' data from an exception, its causes and its members, before its traceback is logged.

    PostgreSQL's DETAIL lines contain whole rows: "Failing row contains (…, Alice, +82-10-…)".
    """
    for each in list(_all_of(error, set())):
        if isinstance(each, asyncpg.PostgresError):
            each.detail = None
            each.args = (_without_value(str(each.args[0])),)
        if isinstance(each, asyncpg.DataError):
            each.__cause__ = each.__context__ = None  # the conversion error repeats the value


def _without_value(text: str) -> str:
    return _VALUE.sub(r"\1 (not shown)", text)


def _all_of(error: BaseException | None, seen: set[int]) -> Iterator[BaseException]:
    if error is None or id(error) in seen:
        return
    seen.add(id(error))
    yield error
    members = error.exceptions if isinstance(error, BaseExceptionGroup) else ()
    for each in (error.__cause__, error.__context__, *members):
        yield from _all_of(each, seen)


def formatter() -> logging.Formatter:
    """JSON lines: time, level, logger, message, trace_id, aggregate_id and, if there is one, traceback."""
    return ProcessorFormatter(
        foreign_pre_chain=[
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
            structlog.stdlib.add_log_level,
            structlog.stdlib.add_logger_name,
            structlog.processors.EventRenamer("message"),
            _add_trace,
        ],
        processors=[
            ProcessorFormatter.remove_processors_meta,
            _add_traceback,
            _as_masked_json,
        ],
    )


def _add_trace(_: object, __: str, line: EventDict) -> EventDict:
    return {**line, **trace.log_fields()}


def _add_traceback(_: object, __: str, line: EventDict) -> EventDict:
    if raised := line.pop("exc_info", None):
        without_rows(raised[1])
        line["traceback"] = "".join(traceback.format_exception(raised[1])).rstrip()
    return line


def _as_masked_json(_: object, __: str, line: EventDict) -> str:
    return mask(json.dumps(line, ensure_ascii=False, default=repr))


def configure(level: str) -> None:
    """Sends every logger's lines to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter())
    logging.basicConfig(level=level, handlers=[handler], force=True)
