"""The caller: the gateway checks the token and passes on its subject and role; a service has a certificate."""

from collections.abc import Mapping, Set
from dataclasses import dataclass

from gotohotel.domain import Actor, Role
from gotohotel.rpc.access import ANYBODY, DESK, GUEST, SERVICE
from gotohotel.rpc.tls import EGRESS, GATEWAY

# Headers that Envoy removes from every request and sets after it has checked the token.
SUBJECT_HEADER = "x-gotohotel-subject"
ROLE_HEADER = "x-gotohotel-role"

# The roles that a peer may name, by the name in its certificate. Nobody else is believed.
_ROLES_OF_PEERS = {GATEWAY: {GUEST, DESK}, EGRESS: {SERVICE}}


class Unauthenticated(Exception):
    """The call carries no identity."""


class PermissionDenied(Exception):
    """The caller's role may not make this call."""


@dataclass(frozen=True, slots=True)
class Caller:
    """The caller, as the gateway found it in the token."""

    subject: str
    role: str

    @property
    def actor(self) -> Actor:
        """The caller as the one who causes a change."""
        return Actor(self.subject, Role(self.role.upper()))

    @property
    def owner(self) -> str | None:
        """Owner filter for queries; None means unrestricted (desk)."""
        return self.subject if self.role == GUEST else None


ANONYMOUS = Caller("", "")


def identify(peer: str, metadata: Mapping[str, object], allowed_roles: Set[str]) -> Caller:
    """Returns the caller that this peer names, who must have one of these roles.

    Raises Unauthenticated or PermissionDenied.
    """
    if peer not in _ROLES_OF_PEERS:
        raise Unauthenticated()
    if ANYBODY in allowed_roles:
        return ANONYMOUS
    subject = metadata.get(SUBJECT_HEADER)
    if not subject:
        raise Unauthenticated()
    role = str(metadata.get(ROLE_HEADER) or GUEST)
    if role not in allowed_roles & _ROLES_OF_PEERS[peer]:
        raise PermissionDenied()
    return Caller(str(subject), role)
