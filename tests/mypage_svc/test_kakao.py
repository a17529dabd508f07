"""The templates, the numbers, and the provider's API over real HTTP."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import pytest

from mypage_svc.domain import CANCELED, TEMPLATES
from mypage_svc.kakao import (
    MAX_TEXT_LENGTH,
    Accepted,
    Message,
    Misconfigured,
    Refused,
    Result,
    TemplateRefused,
    TryLater,
    Undelivered,
    recipient_of,
)
from mypage_svc.kakao.nhn import NhnProvider, NhnSettings, connected
from ops import kakao

VARIABLES = {
    "orderId": "01a210de-f55a-744d-97e1-e5690e7c33fb",
    "name": "이" * 100,
    "roomType": "R" * 64,
    "checkIn": "2026-11-25",
    "checkOut": "2026-11-26",
    "amount": "1,000,000,000,000.00 KRW",
    "confirmationNo": "NMPR2GCRFX",
}


def message(template: str = "GTH_PAID", *, tries: int = 1, attempt: int = 1) -> Message:
    return Message(
        order_id=VARIABLES["orderId"],
        change=template,
        template=template,
        phone_no="010-1234-0000",
        variables=VARIABLES,
        occurred_at=datetime.now(tz=UTC),
        attempt=attempt,
        tries=tries,
    )


@pytest.mark.parametrize("template", sorted({*TEMPLATES.values(), CANCELED}))
def test_a_template_is_filled_and_fits(template: str) -> None:
    """Every variable has a value, and the longest values fit into a message."""
    text = message(template).text
    assert "#{" not in text
    assert VARIABLES["orderId"] in text
    assert len(text) <= MAX_TEXT_LENGTH
    assert len(template) <= 20


@pytest.mark.parametrize(
    ("typed", "recipient"),
    [
        ("010-1234-5678", "01012345678"),
        ("01012345678", "01012345678"),
        ("+82 10-1234-5678", "01012345678"),
        ("+82-10-1234-5678", "01012345678"),
        ("02-123-4567", ""),  # not a mobile
        ("+1-202-555-0143", ""),
        ("+81-90-1234-5678", ""),
        ("12345", ""),
        ("", ""),
    ],
)
def test_a_message_goes_to_a_korean_mobile_number(typed: str, recipient: str) -> None:
    """In the form that the provider takes; other numbers get none."""
    assert recipient_of(typed, "KR") == recipient


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[str]:
    """The URL of a provider."""
    server = kakao.serve(0, tmp_path / kakao.LOG)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@pytest.fixture
async def nhn(fake: str) -> AsyncIterator[NhnProvider]:
    """The adapter, which waits for an answer for a second."""
    async with connected(settings_of(fake)) as provider:
        yield provider


def settings_of(url: str, *, secret: str = kakao.SECRET_KEY) -> NhnSettings:
    return NhnSettings(
        url=url, app_key=kakao.APP_KEY, secret_key=secret, sender_key=kakao.SENDER_KEY, sms_sender_no="0212345678",
        timeout_seconds=1,
    )  # fmt: skip


async def test_a_message_is_accepted_and_delivered(nhn: NhnProvider) -> None:
    """And known by its key."""
    accepted = await nhn.send(message(), "01012340000")
    assert await nhn.result(accepted) == Result("DELIVERED", "1000", "KAKAO")
    assert await nhn.find(message()) == accepted
    assert await nhn.find(message("GTH_EXPIRED")) is None


async def test_an_answer_that_comes_twice_is_not_the_next_messages(nhn: NhnProvider) -> None:
    """Each message has the number that the provider gave to it."""
    first = await nhn.send(message("GTH_PAID"), "01012340200")
    second = await nhn.send(message("GTH_CONFIRMED"), "01012340000")

    assert first.request_id != second.request_id
    assert await nhn.find(message("GTH_CONFIRMED", tries=2)) == second


async def test_many_messages_are_taken_at_once(nhn: NhnProvider) -> None:
    """Each call has a connection of its own, and none is refused."""
    sent = await asyncio.gather(*(nhn.send(message(attempt=number), "01012340000") for number in range(100)))

    assert len({accepted.request_id for accepted in sent}) == 100


async def test_a_message_that_is_sent_again_is_taken_once(nhn: NhnProvider) -> None:
    """The provider refuses the key (-1005); the message is looked up."""
    first = await nhn.send(message(), "01012340000")
    assert await nhn.send(message(), "01012340000") == first


@pytest.mark.parametrize("end", ["0001", "1005"], ids=["no answer", "a late answer"])
async def test_a_message_whose_answer_is_lost_is_found(nhn: NhnProvider, end: str) -> None:
    """The sender does not know; the next try finds it."""
    with pytest.raises(TryLater):
        await nhn.send(message(), f"0101234{end}")
    assert await nhn.find(message()) == await nhn.send(message(), f"0101234{end}")


@pytest.mark.parametrize("end", ["0429", "0500", "9999"])
async def test_a_busy_provider_is_tried_again(nhn: NhnProvider, end: str) -> None:
    """HTTP 429 and 5xx, and its own system error."""
    for _ in range(2):
        with pytest.raises(TryLater):
            await nhn.send(message(), f"0101234{end}")
    assert await nhn.send(message(), f"0101234{end}")


async def test_a_template_that_is_not_approved_is_refused(nhn: NhnProvider) -> None:
    """An operator has to act; messages of other templates go on."""
    with pytest.raises(TemplateRefused):
        await nhn.send(message(), "01012343004")


async def test_a_wrong_secret_stops_the_sender(fake: str) -> None:
    """Every call is refused."""
    async with connected(settings_of(fake, secret="wrong")) as nhn:
        with pytest.raises(Misconfigured):
            await nhn.send(message(), "01012340000")


async def test_a_refused_number_is_given_up(nhn: NhnProvider) -> None:
    """With the provider's code."""
    with pytest.raises(Refused, match="-5000"):
        await nhn.send(message(), "01012345000")


@pytest.mark.parametrize(
    ("end", "result"),
    [("3008", Result("FAILED", "3008")), ("3018", Result("DELIVERED", "3018", "SMS"))],
    ids=["a bad number", "no KakaoTalk"],
)
async def test_what_becomes_of_a_message(nhn: NhnProvider, end: str, result: Result) -> None:
    """Permanent failures, and messages that came as SMS."""
    assert await nhn.result(await nhn.send(message(), f"0101234{end}")) == result


async def test_a_message_that_could_not_be_delivered_is_attempted_again(nhn: NhnProvider) -> None:
    """As another message, with another key."""
    with pytest.raises(Undelivered):
        await nhn.result(await nhn.send(message(), "01012343006"))
    again = message(attempt=2)
    assert again.key != message().key
    assert (await nhn.result(await nhn.send(again, "01012343006"))) == Result("DELIVERED", "1000", "KAKAO")


async def test_a_provider_that_is_away_or_talks_nonsense_is_tried_again() -> None:
    """Nothing is given up because of it."""
    good = b'"header": {"resultCode": 0}'
    answers = iter((b"[]", b"{}", b"{%s}" % good, b'{%s, "message": {"requestId": "r", "sendResults": null}}' % good))

    async def nonsense(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            await reader.read(100)
            answer = next(answers)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(answer), answer))
            await writer.drain()
            writer.close()

    server = await asyncio.start_server(nonsense, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with connected(settings_of(url)) as nhn:
        for _ in range(4):
            with pytest.raises(TryLater):
                await nhn.send(message(), "01012340000")
        server.close()
        await server.wait_closed()
        with pytest.raises(TryLater):
            await nhn.result(Accepted("r1", 1))
