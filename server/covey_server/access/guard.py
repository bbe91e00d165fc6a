"""The API's door: who calls, and whether their role suffices.

    @router.post("/rollouts")
    def create(body: NewRollout, actor: Operator, session: WriteSession) -> ...

A caller presents `Authorization: Bearer covey_...` or the console's login cookie. By cookie, anything but GET, HEAD and
OPTIONS also needs the login's CSRF token in the `X-Covey-CSRF` header, because browsers send cookies by themselves.
"""

from collections.abc import Callable
from typing import Annotated

from fastapi import Depends, Request, Security
from fastapi.security import APIKeyCookie, HTTPAuthorizationCredentials, HTTPBearer

from covey_server.access.logins import COOKIE_NAME, CSRF_HEADER, actor_from_login, check_csrf
from covey_server.access.models import Role
from covey_server.access.rules import Actor, is_allowed
from covey_server.access.service import actor_from_token, note_token_used
from covey_server.api_deps import parts_of
from covey_server.errors import ForbiddenError, UnauthenticatedError

_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_bearer = HTTPBearer(auto_error=False, scheme_name="token", description="An API token, made with `covey token create`.")
_cookie = APIKeyCookie(name=COOKIE_NAME, auto_error=False, scheme_name="login", description="The console's login.")


def authenticate(
    request: Request,
    bearer: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)],
    cookie: Annotated[str | None, Security(_cookie)],
) -> Actor:
    """Who calls. Raises UnauthenticatedError, or ForbiddenError for a cookie without its CSRF token."""
    parts = parts_of(request)
    now = parts.clock()
    if bearer is not None:
        with parts.db.read() as session:
            actor, is_due = actor_from_token(session, bearer.credentials, now=now)
        if is_due:
            with parts.db.begin() as session:
                note_token_used(session, bearer.credentials, now=now)
        return actor
    if cookie:
        with parts.db.read() as session:
            actor, csrf = actor_from_login(session, cookie, now)
        if request.method not in _SAFE_METHODS:
            check_csrf(csrf, request.headers.get(CSRF_HEADER))
        return actor
    raise UnauthenticatedError("no API token or login was presented")


def require(role: Role) -> Callable[..., Actor]:
    """A FastAPI dependency: the caller, who holds at least `role`."""

    def actor_with_role(actor: Annotated[Actor, Depends(authenticate)]) -> Actor:
        if not is_allowed(actor.role, needed=role):
            raise ForbiddenError(f"this needs the role {role.value}; {actor.name} has {actor.role.value}")
        return actor

    return actor_with_role


Viewer = Annotated[Actor, Depends(require(Role.VIEWER))]
Operator = Annotated[Actor, Depends(require(Role.OPERATOR))]
Admin = Annotated[Actor, Depends(require(Role.ADMIN))]
