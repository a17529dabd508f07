"""Logs."""

import json
import logging

from gotohotel.log import JsonLines


def test_a_card_number_in_a_log_line_is_masked() -> None:
    """Whatever a message holds, the digits do not reach the file."""
    record = logging.LogRecord("x", logging.INFO, "", 0, "card %s refused", ("4242 4242 4242 4242",), None)

    line = json.loads(JsonLines().format(record))

    assert line["message"] == "card ****4242 refused"
