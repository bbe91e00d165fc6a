"""REST: API tokens and users. Administrators only, apart from asking who one is."""

from datetime import datetime, timedelta
from typing import Annotated

from fastapi import APIRouter, Path, Response
from pydantic import Field

from covey_server.access import service
from covey_server.access.guard import Admin, Viewer
from covey_server.access.idempotency import Idempotent
from covey_server.access.models import Role
from covey_server.api_deps import ApiInput, ApiView, Page, PageQuery, PartsDep, ReadSession, WriteSession, problems

router = APIRouter(prefix="/api/v1", tags=["access"])
NamePath = Annotated[str, Path(max_length=64)]


class TokenView(ApiView):
    """An API token, without its secret."""

    id: str
    name: str = Field(description="how the audit record names its holder: token:<name>")
    role: Role
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None = Field(description="to about a minute")


class NewTokenView(TokenView):
    """A token that was just made."""

    token: str | None = Field(description="the secret; shown this once, null when an answer is repeated")


class NewToken(ApiInput):
    """What a new token may do, and for how long."""

    name: str = Field(max_length=64, description="lower-case letters, digits, - and _")
    role: Role = Role.VIEWER
    expires_in_days: float | None = Field(None, gt=0, le=3650, description="days; null: until it is revoked")


class UserView(ApiView):
    """A user of the console."""

    name: str
    role: Role
    created_at: datetime


class NewUser(ApiInput):
    """A user to add."""

    name: str = Field(max_length=64, description="lower-case letters, digits, - and _")
    password: str = Field(max_length=1024)
    role: Role = Role.VIEWER


class UserChange(ApiInput):
    """What to change of a user; fields left out stay."""

    password: str | None = Field(None, max_length=1024)
    role: Role | None = None


class WhoAmI(ApiView):
    """The caller."""

    name: str
    role: Role


@router.get("/whoami", summary="Who you are and what you may do", responses=problems())
def who_am_i(actor: Viewer) -> WhoAmI:
    """The caller's name, as the audit record has it, and role."""
    return WhoAmI(name=actor.name, role=actor.role)


@router.get("/tokens", summary="List API tokens", responses=problems(422))
def list_tokens(_: Admin, session: ReadSession, page: PageQuery) -> Page[TokenView]:
    """All tokens, revoked ones included, without their secrets."""
    (after,) = page.after(1) or ("",)
    rows = service.list_tokens(session, after=after, limit=page.limit + 1)
    return Page[TokenView].cut([TokenView.model_validate(row) for row in rows], page, key=lambda view: (view.id,))


@router.post("/tokens", status_code=201, response_model=NewTokenView, summary="Make an API token", responses=problems(409, 422))
def create_token(body: NewToken, actor: Admin, session: WriteSession, once: Idempotent) -> Response:
    """Make a token. Its secret is in this answer and nowhere else."""

    def act() -> NewTokenView:
        expires_in = timedelta(days=body.expires_in_days) if body.expires_in_days else None
        row, text = service.create_token(session, body.name, role=body.role, actor=actor.name, now=once.now, expires_in=expires_in)
        return NewTokenView(**TokenView.model_validate(row).model_dump(), token=text)

    return once.answer(session, act, stored=lambda view: view.model_copy(update={"token": None}))


@router.delete("/tokens/{token_id}", summary="Revoke an API token", responses=problems(404))
def revoke_token(token_id: NamePath, actor: Admin, session: WriteSession, parts: PartsDep) -> TokenView:
    """End a token at once."""
    return TokenView.model_validate(service.revoke_token(session, token_id, actor=actor.name, now=parts.clock()))


@router.get("/users", summary="List users", responses=problems(422))
def list_users(_: Admin, session: ReadSession, page: PageQuery) -> Page[UserView]:
    """All users of the console."""
    (after,) = page.after(1) or ("",)
    rows = service.list_users(session, after=after, limit=page.limit + 1)
    return Page[UserView].cut([UserView.model_validate(row) for row in rows], page, key=lambda view: (view.name,))


@router.post("/users", status_code=201, response_model=UserView, summary="Add a user", responses=problems(409, 422))
def create_user(body: NewUser, actor: Admin, session: WriteSession, once: Idempotent) -> Response:
    """Add somebody who may log in to the console."""

    def act() -> UserView:
        user = service.create_user(session, body.name, password=body.password, role=body.role, actor=actor.name, now=once.now)
        return UserView.model_validate(user)

    return once.answer(session, act)


@router.patch("/users/{name}", summary="Change a user", responses=problems(404, 409, 422))
def change_user(name: NamePath, body: UserChange, actor: Admin, session: WriteSession) -> UserView:
    """Give a user another role or password; a new password ends the user's logins."""
    user = service.change_user(session, name, actor=actor.name, password=body.password, role=body.role)
    return UserView.model_validate(user)


@router.delete("/users/{name}", status_code=204, summary="Delete a user", responses=problems(404, 409))
def delete_user(name: NamePath, actor: Admin, session: WriteSession) -> None:
    """Remove a user and end the user's logins. The last administrator stays."""
    service.delete_user(session, name, actor=actor.name)
