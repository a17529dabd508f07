"""Values in messages."""

import pytest

from gotohotel.access.v1 import actor_pb2
from gotohotel.domain import Actor, Role
from gotohotel.wire import actor_from_proto, actor_to_proto


@pytest.mark.parametrize("role", Role)
def test_an_actor_survives_the_wire(role: Role) -> None:
    """Subject and role."""
    actor = Actor("alice", role)

    assert actor_from_proto(actor_to_proto(actor)) == actor


@pytest.mark.parametrize(
    "message",
    [actor_pb2.Actor(), actor_pb2.Actor(role=actor_pb2.Actor.DESK), actor_pb2.Actor(subject="alice"), None],
)
def test_an_event_of_the_first_release_has_no_actor(message: actor_pb2.Actor | None) -> None:
    """None, so that the service names itself: half an actor would be published, and stay in the stream."""
    unknown = actor_pb2.Actor.FromString(b"\x0a\x05alice\x10\x63")  # a role of a later release

    assert actor_from_proto(unknown if message is None else message) is None
