"""Logs."""

import contextvars
import json
import logging
import sys
from typing import Any

import asyncpg

from gotohotel import trace
from gotohotel.cards import find_card_numbers
from gotohotel.database import Database
from gotohotel.log import formatter


def test_a_card_number_in_a_log_line_is_masked() -> None:
    """Only the last four digits of a card number are written."""
    record = logging.LogRecord("x", logging.INFO, "", 0, "card %s refused", ("4242 4242 4242 4242",), None)

    line = json.loads(formatter().format(record))

    assert line["message"] == "card ****4242 refused"


def test_what_is_left_of_a_long_run_of_digits_is_no_card_number() -> None:
    """The last four digits of a card number and the digits that follow may be one again."""
    record = logging.LogRecord("x", logging.INFO, "", 0, "5847195406135895254814542124720", (), None)

    assert find_card_numbers(formatter().format(record)) == []


def test_a_text_like_a_trace_id_is_masked() -> None:
    """A guest may have typed it: in a log line its quotation marks are escaped."""
    record = logging.LogRecord("x", logging.INFO, "", 0, 'said "trace_id": "' + "4242" * 8 + '"', (), None)

    line = formatter().format(record)

    assert "4242" * 4 not in line
    assert find_card_numbers(line) == []


def test_a_trace_id_is_not_masked() -> None:
    """One in some hundred would be, and its lines could not be found."""
    traces = [f"00-{'42' * 15}a{number}-{'00' * 8}-01" for number in range(2)]

    def line() -> Any:
        return json.loads(formatter().format(logging.LogRecord("x", logging.INFO, "", 0, "x", (), None)))

    def check() -> None:
        trace.enter(traces[0])
        assert line()["trace_id"] == traces[0].split("-")[1]
        trace.enter_batch({"a": traces[0], "b": traces[1]})
        assert line()["trace_id"] == [each.split("-")[1] for each in traces]

    contextvars.copy_context().run(check)


async def test_a_guests_row_does_not_stand_in_a_traceback(order_database: Database) -> None:
    """PostgreSQL's DETAIL line contains the whole row, and asyncpg's errors contain the value; neither is logged."""
    connection = order_database.autocommit
    refused = "INSERT INTO room_types VALUES ('Alice Kim', 1, 'Alice Kim', -1, 1, 'KRW', 1)"
    lines = []
    for statement, *arguments in ((refused,), ("SELECT $1::uuid", "Alice Kim"), ("SELECT 'Alice Kim'::date",)):
        try:
            try:
                await connection.execute(statement, *arguments)
            except (asyncpg.PostgresError, asyncpg.InterfaceError) as error:
                raise ExceptionGroup("several", [RuntimeError("failed"), error]) from error
        except ExceptionGroup:
            record = logging.LogRecord("x", logging.ERROR, "", 0, "it has failed", (), sys.exc_info())
            lines.append(formatter().format(record))

    assert all("Error" in line for line in lines)
    assert not any("Failing row" in line or "DETAIL" in line for line in lines)
    tracebacks = [json.loads(line)["traceback"].splitlines() for line in lines]
    said = [line for traceback in tracebacks for line in traceback if "Error" in line and "await" not in line]
    assert said
    assert [line for line in said if "Alice" in line] == []


def line_now() -> dict[str, object]:
    """The fields of a line that is logged at this moment."""
    record = logging.LogRecord("gotohotel.x", logging.INFO, "", 0, "said", (), None)
    line: dict[str, object] = json.loads(formatter().format(record))
    return line


def test_a_line_says_which_trace_and_which_order_it_is_about() -> None:
    """With the two fields, one order can be followed through all services."""
    traceparent = f"00-{'ab' * 16}-{'cd' * 8}-01"

    def handle_a_request() -> dict[str, object]:
        trace.enter(traceparent)
        trace.about("order 1")
        return line_now()

    def handle_a_batch() -> dict[str, object]:
        trace.enter_batch({"order 1": traceparent, "order 2": traceparent})
        return line_now()

    request = contextvars.copy_context().run(handle_a_request)
    batch = contextvars.copy_context().run(handle_a_batch)

    assert (request["trace_id"], request["aggregate_id"]) == ("ab" * 16, "order 1")
    assert (batch["trace_id"], batch["aggregate_id"]) == (["ab" * 16] * 2, ["order 1", "order 2"])
    assert request.keys() == {"time", "level", "logger", "message", "trace_id", "aggregate_id"}
