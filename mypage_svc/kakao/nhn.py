"""NHN Cloud KakaoTalk Bizmessage, AlimTalk API v2.3 (its public API guide and table of codes)."""

import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta, timezone
from typing import Annotated, Any

import httpx
from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict
from tenacity import retry, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from gotohotel.settings import Text, Timeout, read_settings
from mypage_svc.kakao import (
    Accepted,
    Message,
    Misconfigured,
    Refused,
    Result,
    TemplateRefused,
    TryLater,
    Undelivered,
    Unreachable,
)

logger = logging.getLogger(__name__)

SEOUL = timezone(timedelta(hours=9))  # the provider's dates
LOOK_BACK = timedelta(days=2)

# A second answer to a call would otherwise be read as the answer to the next one.
ONE_CALL_FOR_EACH_CONNECTION = httpx.Limits(max_connections=100, max_keepalive_connections=0)

# Codes of the API.
ACCEPTED = 0
USED_ALREADY = -1005  # the idempotency key: the message was taken before
REFUSE_EVERYTHING = (-1000, -1001, -1027, -4005)  # key, secret, sender or app
TEMPLATE_IS_WRONG = (-3003, -3004, -3005)  # missing, its parameters are bad, or not approved
BAD_NUMBER = (-5000,)
SYSTEM_ERROR = (-7000, -9999)

# Codes of delivery.
DELIVERED = (1000, 3005)  # 3005: sent, and the receipt is unknown; sent again it might come twice
TRY_AGAIN = (3006, 3012, 9998, 9999)
TEMPLATE_DIFFERS = (3015, 3016, 3027)
# All others are final: 3008 is a bad number; 3018 to 3021 can't receive. The provider sends an SMS instead by itself.

SMS_PENDING, SMS_SENT, SMS_FAILED = ("RSC02", "RSC03"), "RSC04", "RSC05"


class NhnSettings(BaseSettings):
    """MYPAGE_NHN_… in the environment."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore")

    url: Annotated[str, Field(pattern=r"^https?://[^\s/]+$")] = "https://kakaotalk-bizmessage.api.nhncloudservice.com"
    app_key: Text
    secret_key: Text
    sender_key: Annotated[str, Field(min_length=40, max_length=40)]
    sms_sender_no: str = ""  # a registered number; without it there is no SMS when KakaoTalk can't deliver
    timeout_seconds: Timeout = 5.0


class NhnProvider:
    """The Provider port over HTTP."""

    name = "nhn"

    def __init__(self, client: httpx.AsyncClient, settings: NhnSettings) -> None:
        self._client = client
        self._settings = settings
        self._path = f"/alimtalk/v2.3/appkeys/{settings.app_key}"

    async def send(self, message: Message, recipient: str) -> Accepted:
        """One message, once: see Provider."""
        to = {
            "recipientNo": recipient,
            "templateParameter": message.parameters,
            "recipientGroupingKey": message.key,
            **({"resendParameter": self._as_sms(message)} if self._settings.sms_sender_no else {}),
        }
        body = {"senderKey": self._settings.sender_key, "templateCode": message.template, "recipientList": [to]}
        answer = await self._call("POST", "/messages", json=body, headers={"X-NC-API-IDEMPOTENCY-KEY": message.key})
        code = answer["header"]["resultCode"]
        if code == USED_ALREADY:
            try:
                found = await self.find(message)
            except Unreachable as error:  # of the look-up only
                raise TryLater(str(error)) from error
            if found is None:
                raise TryLater("taken before, but not listed yet")
            return found
        _refuse(code, answer["header"].get("resultMessage", ""))
        with _read():
            [sent] = answer["message"]["sendResults"]
            code, accepted = int(sent["resultCode"]), (answer["message"]["requestId"], int(sent["recipientSeq"]))
        _refuse(code, sent.get("resultMessage", ""))
        return Accepted(*accepted)

    async def find(self, message: Message) -> Accepted | None:
        """The message with this key among those of the last two days."""
        now = datetime.now(UTC).astimezone(SEOUL)
        dates = {"startRequestDate": _date(now - LOOK_BACK), "endRequestDate": _date(now + timedelta(minutes=1))}
        answer = await self._ask("/messages", params={**dates, "recipientGroupingKey": message.key})
        with _read():
            for found in answer["messageSearchResultResponse"]["messages"]:
                if found["recipientGroupingKey"] == message.key:
                    return Accepted(found["requestId"], int(found["recipientSeq"]))
        return None

    async def result(self, accepted: Accepted) -> Result | None:
        """The result of one message."""
        answer = await self._ask(f"/messages/{accepted.request_id}/{accepted.recipient_seq}")
        with _read():
            message = answer["message"]
            if message["messageStatus"] not in ("COMPLETED", "FAILED", "CANCEL"):
                return None
            code = int(message["resultCode"] or 0)  # none for a message that was canceled
        if code in DELIVERED:
            return Result("DELIVERED", str(code), "KAKAO")
        if code in TEMPLATE_DIFFERS:
            logger.critical("KakaoTalk: a template differs from the approved one (code %d)", code)
        sms = message.get("resendStatus", "")
        if sms == SMS_SENT:
            return Result("DELIVERED", str(code), "SMS")
        if sms in SMS_PENDING:
            return None
        if code in TRY_AGAIN and sms != SMS_FAILED:
            raise Undelivered(str(code))
        return Result("FAILED", str(code))

    def _as_sms(self, message: Message) -> dict[str, object]:
        text = {"resendType": "LMS", "resendTitle": "GotoHotel", "resendContent": message.text}
        return {"isResend": True, **text, "resendSendNo": self._settings.sms_sender_no}

    @retry(
        stop=stop_after_attempt(3),
        wait=wait_random_exponential(multiplier=0.2, max=2),
        retry=retry_if_exception_type(TryLater),
        reraise=True,
    )
    async def _ask(self, path: str, **options: Any) -> dict[str, Any]:
        """A call that changes nothing."""
        answer = await self._call("GET", path, **options)
        _refuse(answer["header"]["resultCode"], answer["header"].get("resultMessage", ""))
        return answer

    async def _call(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        try:
            answer = await self._client.request(method, self._path + path, **options)
            if answer.status_code >= httpx.codes.INTERNAL_SERVER_ERROR or answer.status_code == 429:
                raise TryLater(f"HTTP {answer.status_code}")
            with _read():
                parsed: dict[str, Any] = answer.json()
                parsed["header"]["resultCode"] = int(parsed["header"]["resultCode"])
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
            raise Unreachable(type(error).__name__) from error
        except httpx.HTTPError as error:
            raise TryLater(type(error).__name__) from error
        return parsed


@contextmanager
def _read() -> Iterator[None]:
    """What is no answer of this API is asked again."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise TryLater(f"not an answer of this API: {error!r}") from None


def _refuse(code: int, text: str) -> None:
    if code == ACCEPTED:
        return
    if code in REFUSE_EVERYTHING:
        raise Misconfigured(f"{code}: {text}")
    if code in TEMPLATE_IS_WRONG:
        raise TemplateRefused(str(code))
    if code in SYSTEM_ERROR:
        raise TryLater(str(code))
    raise Refused(str(code))


def _date(time: datetime) -> str:
    return time.strftime("%Y-%m-%d %H:%M")


@asynccontextmanager
async def open_nhn() -> AsyncIterator[NhnProvider]:
    """Reads the settings and opens the provider."""
    async with connected(read_settings(NhnSettings, "MYPAGE_NHN")) as provider:
        yield provider


@asynccontextmanager
async def connected(settings: NhnSettings) -> AsyncIterator[NhnProvider]:
    """The provider with these settings."""
    logging.getLogger("httpx").setLevel(logging.WARNING)  # its lines have the app key in them
    headers = {"X-Secret-Key": settings.secret_key, "Content-Type": "application/json;charset=UTF-8"}
    async with httpx.AsyncClient(
        base_url=settings.url, headers=headers, timeout=settings.timeout_seconds, limits=ONE_CALL_FOR_EACH_CONNECTION
    ) as client:
        yield NhnProvider(client, settings)
