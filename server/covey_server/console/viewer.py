"""Who looks at a page: every page needs a login, every form its CSRF token, every act a role."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Form, Request

from covey_server.access.logins import COOKIE_NAME, actor_from_login, check_csrf
from covey_server.access.models import Role
from covey_server.access.rules import is_allowed
from covey_server.api_deps import parts_of
from covey_server.errors import ForbiddenError, UnauthenticatedError


@dataclass(frozen=True, slots=True)
class Viewer:
    """Somebody who is logged in."""

    actor: str  # user:alice, as the audit record names them
    role: Role
    csrf: str

    @property
    def name(self) -> str:
        """The user's name."""
        return self.actor.partition(":")[2]

    @property
    def can_operate(self) -> bool:
        """Whether buttons that change something are shown."""
        return is_allowed(self.role, needed=Role.OPERATOR)


def require_viewer(request: Request) -> Viewer:
    """The viewer of a page. Raises UnauthenticatedError, which leads to the login page."""
    secret = request.cookies.get(COOKIE_NAME)
    if not secret:
        raise UnauthenticatedError("log in to see this page")
    parts = parts_of(request)
    with parts.db.read() as session:
        actor, csrf = actor_from_login(session, secret, parts.clock())
    return Viewer(actor.name, actor.role, csrf)


LoggedIn = Annotated[Viewer, Depends(require_viewer)]


def require_form(viewer: LoggedIn, csrf: Annotated[str, Form()] = "") -> Viewer:
    """The viewer who sent a form with the token of their login."""
    check_csrf(viewer.csrf, csrf)
    return viewer


def require_operator(viewer: Annotated[Viewer, Depends(require_form)]) -> Viewer:
    """The operator who sent a form."""
    if not viewer.can_operate:
        raise ForbiddenError(f"this needs the role {Role.OPERATOR.value}; you have {viewer.role.value}")
    return viewer


FormSender = Annotated[Viewer, Depends(require_form)]
OperatorForm = Annotated[Viewer, Depends(require_operator)]
