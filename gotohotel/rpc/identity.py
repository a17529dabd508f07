"""Who calls: the gateway checks the token and passes on whom it names."""

from collections.abc import Mapping, Set
from dataclasses import dataclass

from gotohotel.rpc.access import ANYBODY, GUEST

# What Envoy puts on a request after it has checked the token, and removes from every request before.
SUBJECT_HEADER = "x-gotohotel-subject"
ROLE_HEADER = "x-gotohotel-role"


class Unauthenticated(Exception):
    """The call carries no identity."""


class PermissionDenied(Exception):
    """The caller's role may not make this call."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls, as the gateway's check of the token found."""

    subject: str
    role: str

    @property
    def owner(self) -> str | None:
        """Owner filter for queries; None means unrestricted (desk)."""
        return self.subject if self.role == GUEST else None


ANONYMOUS = Caller("", "")


def identify(metadata: Mapping[str, object], allowed_roles: Set[str]) -> Caller:
    """The caller of a call for these roles. Raises Unauthenticated or PermissionDenied."""
    if ANYBODY in allowed_roles:
        return ANONYMOUS
    subject = metadata.get(SUBJECT_HEADER)
    if not subject:
        raise Unauthenticated()
    role = str(metadata.get(ROLE_HEADER) or GUEST)
    if role not in allowed_roles:
        raise PermissionDenied()
    return Caller(str(subject), role)
