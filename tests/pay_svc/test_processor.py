"""The contract of every card processor's adapter, and how pay_svc selects one."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from decimal import Decimal

import pytest

from gotohotel.app import App
from gotohotel.database import Database
from gotohotel.domain import Money
from gotohotel.ids import new_id
from gotohotel.pay.v1 import events_pb2
from gotohotel.settings import SettingRefused, read_settings
from pay_svc import processor as processors
from pay_svc.__main__ import PaySettings, compose
from pay_svc.domain import Card, Charge, DeclineReason, Processor, ProcessorUnavailable, Refusal
from pay_svc.sandbox import SandboxProcessor
from tests.model.fakes import FakeProcessor, Steps

AMOUNT = Money("KRW", Decimal(1000))
CARD = Card("4242424242424242")


@pytest.fixture(params=["sandbox", "fake", "fake that can only be asked"])
def processor(request: pytest.FixtureRequest, pay_database: Database) -> Processor:
    """Each adapter; add a new one here."""
    if request.param == "sandbox":
        return SandboxProcessor(pay_database, delay_ms=0)
    steps = Steps()
    steps.free = True
    return FakeProcessor(steps, closes_unseen_keys=request.param == "fake")


async def pay(processor: Processor, key: str) -> Charge | Refusal:
    """Creates and confirms a payment."""
    await processor.create(key, order_id="o", amount=AMOUNT)
    return await processor.confirm(key, order_id="o", amount=AMOUNT, card=CARD)


async def test_a_key_is_charged_once(processor: Processor) -> None:
    """The outcome of a key never changes, however often it is confirmed, and `cancel` returns the same outcome."""
    key = new_id()

    outcomes = await asyncio.gather(*(pay(processor, key) for _ in range(5)))

    assert isinstance(outcomes[0], Charge)
    assert set(outcomes) == {outcomes[0]}
    assert await processor.cancel(key) == outcomes[0]


async def test_a_canceled_key_is_never_charged(processor: Processor) -> None:
    """A confirmation after the cancel is refused, however late it arrives."""
    key = new_id()
    await processor.create(key, order_id="o", amount=AMOUNT)

    canceled = await processor.cancel(key)

    assert isinstance(canceled, Refusal)
    assert await pay(processor, key) == canceled
    assert await processor.cancel(key) == canceled


async def test_a_key_that_was_never_seen_is_closed_or_cannot_be_told(processor: Processor) -> None:
    """`closes_unseen_keys` says which: an adapter never returns an outcome that may still change."""
    key = new_id()

    if processor.closes_unseen_keys:
        assert isinstance(await processor.cancel(key), Refusal)
        assert isinstance(await pay(processor, key), Refusal)
    else:
        with pytest.raises(ProcessorUnavailable):
            await processor.cancel(key)


async def test_a_refund_may_be_repeated(processor: Processor) -> None:
    """This includes closed and unseen keys. After a refund, the charge remains the outcome of its key."""
    charged, closed = new_id(), new_id()
    outcome = await pay(processor, charged)
    await processor.create(closed, order_id="o", amount=AMOUNT)
    await processor.cancel(closed)

    for key in (charged, charged, closed, new_id()):
        await processor.refund(key)

    assert await processor.cancel(charged) == outcome


def test_the_reasons_are_the_contracts() -> None:
    """DeclineReason has the names of the proto's enum, which the string fields of payments and events contain."""
    names = set(events_pb2.DeclineReason.keys()) - {"DECLINE_REASON_UNSPECIFIED"}

    assert {reason.value for reason in DeclineReason} == names


def test_a_reason_that_is_unknown_is_a_decline() -> None:
    """A reason that is not in the contract becomes CARD_DECLINED, because a retry would not help."""
    assert DeclineReason("DO_NOT_HONOR") == DeclineReason.CARD_DECLINED


SETTINGS = {
    "PAY_PORT": "1", "PAY_DATABASE_URL": "postgres://x", "PAY_NATS_URL": "nats://x", "PAY_TLS_FOLDER": "/",
    "PAY_ORDER_KEY": "0" * 64,
}  # fmt: skip


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """All settings of pay_svc, and none of the sandbox."""
    for name, value in {**SETTINGS, "PAY_FINGERPRINT_KEY": "x"}.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


def test_an_unknown_processor_is_refused_by_name(environment: pytest.MonkeyPatch) -> None:
    """A misspelled processor raises SettingRefused, which names PAY_PROCESSOR."""
    environment.setenv("PAY_PROCESSOR", "sandbx")

    with pytest.raises(SettingRefused, match="PAY_PROCESSOR"):
        read_settings(PaySettings, "PAY")


async def test_another_processor_needs_nothing_of_the_sandbox(
    environment: pytest.MonkeyPatch, order_database: Database
) -> None:
    """With another processor, pay_svc starts without the sandbox's settings; the sandbox reports a missing one."""
    opened = []

    @asynccontextmanager
    async def open_other() -> AsyncIterator[Processor]:
        opened.append("other")
        yield FakeProcessor(Steps())

    environment.setitem(processors.PROCESSORS, "other", open_other)
    settings = read_settings(PaySettings, "PAY")
    async with AsyncExitStack() as resources:
        app = App(settings, order_database, resources, name="pay_svc")
        await compose(app, settings.model_copy(update={"processor": "other"}))
        assert opened == ["other"]

        with pytest.raises(SettingRefused, match="PAY_SANDBOX_DATABASE_URL"):
            await compose(app, settings)
