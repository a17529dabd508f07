"""Logs as JSON lines, with anything that looks like a card number masked."""

import json
import logging
import sys
from datetime import UTC, datetime

from gotohotel.domain import find_card_numbers


def mask(text: str) -> str:
    """Replaces card numbers by their last four digits."""
    for number in find_card_numbers(text):
        text = text.replace(number, f"****{number[-4:]}")
    return text


class JsonLines(logging.Formatter):
    """One JSON object a line: time, level, logger, message, and the traceback if there is one."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return mask(json.dumps(line, ensure_ascii=False))


def configure(level: str) -> None:
    """Sends every logger's lines to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=level, handlers=[handler], force=True)
