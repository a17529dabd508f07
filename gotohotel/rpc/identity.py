"""The caller: the gateway checks the token and passes on its subject and role."""

from collections.abc import Mapping, Set
from dataclasses import dataclass

from gotohotel.rpc.access import ANYBODY, GUEST

# Headers that Envoy removes from every request and sets after it has checked the token.
SUBJECT_HEADER = "x-gotohotel-subject"
ROLE_HEADER = "x-gotohotel-role"


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
    def owner(self) -> str | None:
        """Owner filter for queries; None means unrestricted (desk)."""
        return self.subject if self.role == GUEST else None


ANONYMOUS = Caller("", "")


def identify(metadata: Mapping[str, object], allowed_roles: Set[str]) -> Caller:
    """Returns the caller, who must have one of these roles. Raises Unauthenticated or PermissionDenied."""
    if ANYBODY in allowed_roles:
        return ANONYMOUS
    subject = metadata.get(SUBJECT_HEADER)
    if not subject:
        raise Unauthenticated()
    role = str(metadata.get(ROLE_HEADER) or GUEST)
    if role not in allowed_roles:
        raise PermissionDenied()
    return Caller(str(subject), role)
