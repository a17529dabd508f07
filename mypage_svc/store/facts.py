"""Facts as JSON, as both stores keep them: {source/version: fact}."""

from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any

from gotohotel.domain import Money
from mypage_svc.domain import Fact

StoredFacts = dict[str, dict[str, Any]]


def to_json(facts: Iterable[Fact]) -> StoredFacts:
    """The facts by key."""
    return {fact.key: _to_json(fact) for fact in facts}


def from_json(stored: Mapping[str, Mapping[str, Any]]) -> Iterator[Fact]:
    """The facts that were stored."""
    return (_fact(key, value) for key, value in stored.items())


def owner_of(facts: Iterable[Fact]) -> str | None:
    """Whose page it is, if these facts tell."""
    return next((fact.booking["owner"] for fact in facts if fact.booking), None)


def erased(*, names: bool) -> dict[str, str]:
    """What takes the place of personal data in a booking."""
    return {"phone_no": "", "name": ""} if names else {"phone_no": ""}


def _to_json(fact: Fact) -> dict[str, Any]:
    value: dict[str, Any] = {"event": fact.event, "time": fact.time.isoformat()}
    if fact.detail:
        value["detail"] = fact.detail
    if fact.actor_role:
        value["actor_role"] = fact.actor_role
    if fact.booking:
        value["booking"] = dict(fact.booking)
    if fact.amount:
        value["amount"] = [fact.amount.currency, str(fact.amount.amount)]
    return value


def _fact(key: str, value: Mapping[str, Any]) -> Fact:
    source, version = key.split("/")
    amount = value.get("amount")
    return Fact(
        source=source,
        version=int(version),
        event=value["event"],
        time=datetime.fromisoformat(value["time"]),
        detail=value.get("detail", ""),
        actor_role=value.get("actor_role", ""),
        booking=value.get("booking"),
        amount=Money(amount[0], Decimal(amount[1])) if amount else None,
    )
