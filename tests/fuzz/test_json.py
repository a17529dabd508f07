"""Schemathesis on the OpenAPI description, through the real gateway."""

import json
import random
from typing import Any
from urllib.parse import quote

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.conftest import ROOT, Client, Hotel
from tests.fuzz.conftest import CARDS, CASES, HOSTILE_TEXTS, Truth, patiently, spoil

DOCUMENT = json.loads((ROOT / "gotohotel" / "openapi.json").read_text())
OPERATIONS: list[Any] = [found.ok() for found in schemathesis.openapi.from_dict(DOCUMENT).get_all_operations()]  # type: ignore[union-attr]
SHARE = max(10, CASES * 3 // 4 // len(OPERATIONS))
SECOND_PATHS = {"deleteOrder": "CancelOrder", "createPayment": "PayOrder"}
LONGEST_IN_A_URL = 20_000  # the gateway accepts 16 KB of headers; the client refuses longer URLs
CHECKS = [status_code_conformance, content_type_conformance, response_schema_conformance]


# A stream does not end: hostile input to it is in tests/system/test_watch.py.
@pytest.mark.parametrize(
    "operation",
    [each for each in OPERATIONS if each.definition.raw["operationId"] != "streamMyPage"],
    ids=lambda operation: operation.label,
)
def test_hostile_input_is_answered_as_documented(operation: Any, hotel: Hotel, truth: Truth) -> None:
    """Only documented codes are returned, and no 5xx. A refused call changes nothing and repeats no card number."""
    operation_id = operation.definition.raw["operationId"]
    rpc = SECOND_PATHS.get(operation_id, operation_id[0].upper() + operation_id[1:])
    orders = truth.place_some()
    cases = st.one_of(operation.as_strategy(GenerationMode.POSITIVE), operation.as_strategy(GenerationMode.NEGATIVE))

    @settings(max_examples=SHARE, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(case=cases, seed=st.integers(0, 2**32))
    def try_one(case: Any, seed: int) -> None:
        chance = random.Random(seed)
        _aim(case, rpc, orders, chance)
        caller = chance.choice([truth.guest, truth.guest, hotel.desk, hotel.desk, truth.stranger])
        answer = patiently(lambda: _send(case, caller), lambda answer: "RATE_LIMITED" in answer.text)
        truth.answers[rpc, answer.status_code] += 1
        asked = f"{case.method} {case.path} {case.path_parameters} {case.query} {case.body}"
        said = f"{asked[:500]} → {answer.status_code} {answer.text[:500]}"
        assert answer.status_code < 500, said
        case.validate_response(answer, checks=CHECKS)
        if answer.status_code == httpx.codes.OK:
            truth.note(rpc, caller, answer.json())
        else:
            assert not any(card in answer.text for card in CARDS), said

    try_one()
    truth.check()


def _aim(case: Any, rpc: str, orders: list[str], chance: random.Random) -> None:
    """Points the case at an existing resource in many cases, and puts hostile texts into it in others."""
    for name in case.path_parameters or {}:
        draw = chance.random()
        if rpc == "UpsertRoomType":
            case.path_parameters[name] = f"Fuzz{chance.randrange(3)}" if draw < 0.7 else chance.choice(HOSTILE_TEXTS)
        elif draw < 0.6:
            case.path_parameters[name] = chance.choice(orders)
        elif draw < 0.8:
            case.path_parameters[name] = chance.choice(HOSTILE_TEXTS)
    if isinstance(case.body, dict):
        if "orderId" in case.body and chance.random() < 0.6:
            case.body["orderId"] = chance.choice(orders)
        if rpc in ("CreateOrder", "PayOrder") and chance.random() < 0.4:
            case.body["cardNo"] = chance.choice(["4242424242424242", "4000000000000002", "4000000000000259"])
        if rpc == "CreateOrder" and chance.random() < 0.5:
            case.body.update(name="Fuzz", roomType="Normal", guestCnt=1, checkIn="", checkOut="", phoneNo="")
        if rpc == "UpsertRoomType" and chance.random() < 0.5:
            case.body["nightlyRate"] = {"currencyCode": "KRW", "units": str(chance.randrange(10**6))}
        if chance.random() < 0.3:
            case.body = spoil(case.body, chance)
    if case.query and chance.random() < 0.3:
        case.query = spoil(dict(case.query), chance)


def _send(case: Any, caller: Client) -> httpx.Response:
    """Sends the case unchanged; other clients would refuse to send some cases."""
    path = case.path
    for name, value in (case.path_parameters or {}).items():
        # A slash or an empty value would make this another path.
        path = path.replace(f"{{{name}}}", quote(str(value)[:LONGEST_IN_A_URL], safe="") or "%20")
    body = None if case.method in ("GET", "DELETE") else _encoded(case.body)
    query = [(name, _text(value)[:LONGEST_IN_A_URL]) for name, value in dict(case.query or {}).items()]
    headers = {"content-type": "application/json"} if body is not None else {}
    return caller.request(case.method, path, params=query, content=body, headers=headers)


def _encoded(body: Any) -> bytes:
    if isinstance(body, bytes):
        return body
    try:
        return json.dumps(body).encode()
    except TypeError:  # the case has no body
        return b""


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.label)
def test_the_gateway_knows_every_described_call(operation: Any, guest: Client) -> None:
    """The gateway knows every path in the OpenAPI description, and answers with a documented status."""
    path = operation.path.replace("{id}", "x").replace("{order_id}", "x")

    answer = guest.request(operation.method, path, content=None if operation.method == "get" else "{}")

    reasons = [detail.get("reason") for detail in answer.json().get("details", [])] if not answer.is_success else []
    assert "NO_SUCH_PATH" not in reasons
    assert str(answer.status_code) in operation.definition.raw["responses"]
