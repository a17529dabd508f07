"""KakaoTalk messages (Alimtalk): the port to a provider, and the templates.

console  writes the messages to the log
nhn      NHN Cloud's KakaoTalk Bizmessage
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Protocol

import phonenumbers

MAX_TEXT_LENGTH = 1300  # of a template with its variables filled in
_TEMPLATES = Path(__file__).parent / "templates"
_VARIABLE = re.compile(r"#{(\w+)}")
_MOBILE = (phonenumbers.PhoneNumberType.MOBILE, phonenumbers.PhoneNumberType.FIXED_LINE_OR_MOBILE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One message about a change of state. `tries`: how often this attempt was handed over, this time included."""

    order_id: str
    change: str
    template: str
    phone_no: str  # as typed
    variables: Mapping[str, str]
    occurred_at: datetime
    attempt: int
    tries: int

    @property
    def key(self) -> str:
        """The same for every try of this attempt: the provider takes it once."""
        return message_key(self.order_id, self.change, self.attempt)

    @property
    def parameters(self) -> dict[str, str]:
        """The variables that the template has."""
        return {name: self.variables[name] for name in _VARIABLE.findall(template_text(self.template))}

    @property
    def text(self) -> str:
        """The template with its variables filled in."""
        return _VARIABLE.sub(lambda found: self.variables[found[1]], template_text(self.template))


@dataclass(frozen=True, slots=True)
class Accepted:
    """The provider has the message: its number there."""

    request_id: str
    recipient_seq: int


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a message: DELIVERED (by KAKAO or SMS) or FAILED, with the provider's code."""

    status: str
    code: str
    channel: str = ""


class Undelivered(Exception):
    """The provider had the message and could not deliver it; another attempt may succeed."""


class TryLater(Exception):
    """The provider can't be reached, or did not say whether it has the message."""


class Unreachable(TryLater):
    """No connection to the provider: it certainly does not have the message."""


class Refused(Exception):
    """The provider will never take this message. The argument is its code."""


class Misconfigured(Exception):
    """The provider refuses every message: a key or the sender is wrong."""


class TemplateRefused(Exception):
    """The provider refuses the message's template: it is missing, not approved, or has other variables. The argument
    is the code.
    """


class Provider(Protocol):
    """Sends messages. `name` is stored with those that it has."""

    name: str

    async def send(self, message: Message, recipient: str) -> Accepted:
        """Hands a message over. The same message is taken once.

        Raises TryLater, Unreachable, Refused, TemplateRefused or Misconfigured.
        """
        ...

    async def find(self, message: Message) -> Accepted | None:
        """Whether the provider has this message, after a try whose outcome is unknown. Raises TryLater."""
        ...

    async def result(self, accepted: Accepted) -> Result | None:
        """What became of a message; None if that is not known yet. Raises TryLater or Undelivered."""
        ...


def message_key(order_id: str, change: str, attempt: int) -> str:
    """The key under which the provider knows a message."""
    return hashlib.sha256(f"{order_id}/{change}/{attempt}".encode()).hexdigest()[:32]


@cache
def template_text(name: str) -> str:
    """The text of a template, with #{variables}. Raises LookupError for one that only another release has."""
    try:
        return (_TEMPLATES / f"{name}.txt").read_text().rstrip("\n")
    except FileNotFoundError:
        raise LookupError(f"there is no template {name}") from None


def recipient_of(phone_no: str, region: str) -> str:
    """A number as the provider takes it: the digits of a mobile number of that country, or "" for any other."""
    try:
        number = phonenumbers.parse(phone_no, region)
    except phonenumbers.NumberParseException:
        return ""
    is_here = phonenumbers.region_code_for_number(number) == region
    if not is_here or phonenumbers.number_type(number) not in _MOBILE:
        return ""
    national = phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.NATIONAL)
    return re.sub(r"\D", "", national)
