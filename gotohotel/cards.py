"""Card numbers: the check digit, and how to find them in text where they are not allowed."""

import re
from collections.abc import Iterator

# Digits with up to two other characters between them, as people write them: 4242 4242, 4242-4242, 4242.4242, 4242 –
# 4242.
_DIGITS = re.compile(r"\d(?:[ \u00a0\u202f._/\-\u2010-\u2015]{0,2}\d){12,}")
# Identifiers contain digits too, but no card numbers: UUIDs, trace contexts, SHA-256, and Unix times in logs.
IDENTIFIER = re.compile(
    r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}"
    r"|(?<!\w)(?=\d*[a-f])[0-9a-f]{64}(?!\w)|(?<!\d)\d{10}\.\d{3,9}(?!\d)"
)
# In a log line. A text that a guest has typed can't look like this there: its quotation marks are escaped.
_TRACE_IDS = re.compile(r'"trace_id": (?:"[0-9a-f]{32}"|\[(?:"[0-9a-f]{32}"(?:, )?)*\])')


def passes_luhn(digits: str) -> bool:
    """Whether the last digit is the Luhn check digit of the others (ISO/IEC 7812-1)."""
    doubled = (int(digit) * 2 for digit in digits[-2::-2])
    return (sum(map(int, digits[-1::-2])) + sum(d - 9 if d > 9 else d for d in doubled)) % 10 == 0


def find_card_numbers(text: str) -> list[str]:
    """Returns the parts of a text that may be card numbers: 13 to 19 digits that begin with 2 to 6 and pass Luhn.

    Starts at every digit of every run of digits, so that an expiry date beside a number does not hide it.

    Identifiers, recognised by their form, are skipped: this function is for text that the program writes. For text that
    a guest types use parse_text.
    """
    if len(text) < 13:
        return []
    rest = IDENTIFIER.sub(" ", _TRACE_IDS.sub(" ", text))
    return [found for run in _DIGITS.finditer(rest) for found in cards_in(run[0])]


def cards_in(text: str) -> Iterator[str]:
    """Returns the card numbers in a text, with any characters but letters between their digits."""
    for run in re.finditer(r"\d(?:[\W_]*\d){12,}", text):
        places = [place for place, char in enumerate(run[0]) if char.isdecimal()]
        digits = "".join(str(int(run[0][place])) for place in places)
        first = 0
        while first <= len(digits) - 13:
            lengths = range(min(19, len(digits) - first), 12, -1)
            last = next((first + n for n in lengths if passes_luhn(digits[first : first + n])), None)
            if last is not None and digits[first] in "23456":
                yield run[0][places[first] : places[last - 1] + 1]
                first = last
            else:
                first += 1
