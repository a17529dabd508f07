"""Policies: what runs when an event has happened."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from gotohotel.database import Connection
from gotohotel.order.v1.events_pb2 import OrderCanceled
from gotohotel.policies import Policies, ReceivedEvent


@asynccontextmanager
async def open_list(_: Connection, __: Sequence[ReceivedEvent]) -> AsyncIterator[list[str]]:
    """A unit of work that only records what ran."""
    yield []


def test_an_event_may_have_several_policies() -> None:
    """An event's policies run in the order in which they were registered; none replaces another."""
    policies: Policies[list[str]] = Policies(open_list)
    policies.whenever(OrderCanceled)(lambda event, ran: ran.append(f"first {event.order_id}"))
    policies.whenever(OrderCanceled)(lambda event, ran: ran.append(f"second {event.order_id}"))
    ran: list[str] = []

    policies.run([ReceivedEvent("e", "o", "", OrderCanceled(order_id="o"))], ran)

    assert ran == ["first o", "second o"]
    assert policies.subjects == ["gotohotel.order.v1.OrderCanceled"]
