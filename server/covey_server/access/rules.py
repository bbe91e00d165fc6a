"""Who somebody is and what each role includes. Pure."""

from dataclasses import dataclass

from covey_server.access.models import Role

_RANK = {Role.VIEWER: 0, Role.OPERATOR: 1, Role.ADMIN: 2}


@dataclass(frozen=True, slots=True)
class Actor:
    """Somebody who was authenticated: `user:alice` or `token:ci`, as the audit record names them."""

    name: str
    role: Role


def is_allowed(role: Role, *, needed: Role) -> bool:
    """Whether `role` includes `needed`."""
    return _RANK[role] >= _RANK[needed]
