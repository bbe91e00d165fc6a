"""Users and API tokens."""

import secrets
from collections.abc import Sequence
from datetime import datetime, timedelta

from sqlmodel import Session, col, delete, select

from covey_contract.ids import parse_name
from covey_server.access.models import ApiToken, Login, Role, User
from covey_server.access.passwords import hash_password
from covey_server.access.rules import Actor
from covey_server.access.tokens import hash_secret, new_token
from covey_server.audit import service as audit
from covey_server.errors import ConflictError, InvalidInputError, NotFoundError, UnauthenticatedError

_USED_EVERY = timedelta(minutes=1)  # writing "last used" on every request would make each read a write


def create_token(
    session: Session, name: str, *, role: Role, actor: str, now: datetime, expires_in: timedelta | None = None
) -> tuple[ApiToken, str]:
    """Make an API token; returns its row and its text, which is shown this once and never stored."""
    parse_name(name, "token name")
    if expires_in is not None and expires_in <= timedelta():
        raise InvalidInputError(f"a token must expire in the future, got {expires_in}")
    text = new_token()
    token = ApiToken(
        id=secrets.token_hex(8),
        name=name,
        secret_hash=hash_secret(text),
        role=role,
        created_at=now,
        expires_at=now + expires_in if expires_in else None,
    )
    session.add(token)
    audit.record(session, "token.created", actor=actor, subject=token.id, detail={"name": name, "role": role.value})
    return token, text


def list_tokens(session: Session, *, after: str = "", limit: int = 50) -> Sequence[ApiToken]:
    """Tokens by id, those that were revoked included."""
    return session.exec(select(ApiToken).where(col(ApiToken.id) > after).order_by(col(ApiToken.id)).limit(limit)).all()


def revoke_token(session: Session, token_id: str, *, actor: str, now: datetime) -> ApiToken:
    """End a token at once; again is no error."""
    token = session.get(ApiToken, token_id)
    if token is None:
        raise NotFoundError("token", token_id)
    if token.revoked_at is None:
        token.revoked_at = now
        session.add(token)
        audit.record(session, "token.revoked", actor=actor, subject=token.id, detail={"name": token.name})
    return token


def actor_from_token(session: Session, text: str, *, now: datetime) -> tuple[Actor, bool]:
    """Who presents this token, and whether its use should be noted. Raises UnauthenticatedError.

    The lookup is by hash: what an attacker could time is a comparison of hashes of random secrets, which tells nothing.
    """
    token = session.exec(select(ApiToken).where(ApiToken.secret_hash == hash_secret(text))).first()
    if token is None or token.revoked_at is not None or (token.expires_at is not None and token.expires_at <= now):
        raise UnauthenticatedError("the API token is not valid, was revoked or has expired")
    is_due = token.last_used_at is None or now - token.last_used_at >= _USED_EVERY
    return Actor(f"token:{token.name}", token.role), is_due


def note_token_used(session: Session, text: str, *, now: datetime) -> None:
    """Write when a token was last used."""
    token = session.exec(select(ApiToken).where(ApiToken.secret_hash == hash_secret(text))).first()
    if token is not None:
        token.last_used_at = now
        session.add(token)


def create_user(session: Session, name: str, *, password: str, role: Role, actor: str, now: datetime) -> User:
    """Add a user of the console."""
    parse_name(name, "user name")
    if session.get(User, name) is not None:
        raise ConflictError(f"there is already a user {name}")
    user = User(name=name, password_hash=hash_password(password), role=role, created_at=now)
    session.add(user)
    audit.record(session, "user.created", actor=actor, subject=name, detail={"role": role.value})
    return user


def list_users(session: Session, *, after: str = "", limit: int = 50) -> Sequence[User]:
    """Users by name."""
    return session.exec(select(User).where(col(User.name) > after).order_by(col(User.name)).limit(limit)).all()


def change_user(session: Session, name: str, *, actor: str, password: str | None = None, role: Role | None = None) -> User:
    """Give a user another password or role. A new password ends every login that the old one opened."""
    user = _user(session, name)
    changed: dict[str, str] = {}
    if password is not None:
        user.password_hash = hash_password(password)
        changed["password"] = "changed"  # noqa: S105 - says that it was changed, not to what
        _end_logins(session, name)
    if role is not None and role is not user.role:
        if user.role is Role.ADMIN:
            _keep_an_admin(session, name)
        user.role = role
        changed["role"] = role.value
    session.add(user)
    if changed:
        audit.record(session, "user.changed", actor=actor, subject=name, detail=dict(changed))
    return user


def delete_user(session: Session, name: str, *, actor: str) -> None:
    """Remove a user and end their logins."""
    user = _user(session, name)
    if user.role is Role.ADMIN:
        _keep_an_admin(session, name)
    _end_logins(session, name)
    session.delete(user)
    audit.record(session, "user.deleted", actor=actor, subject=name)


def ensure_admin(session: Session, name: str, password: str, *, now: datetime) -> User:
    """Make sure that this administrator exists; an existing user's password is left alone."""
    user = session.get(User, name)
    if user is None:
        return create_user(session, name, password=password, role=Role.ADMIN, actor="system", now=now)
    return user


def _user(session: Session, name: str) -> User:
    user = session.get(User, name)
    if user is None:
        raise NotFoundError("user", name)
    return user


def _keep_an_admin(session: Session, leaving: str) -> None:
    others = session.exec(select(User.name).where(User.role == Role.ADMIN, col(User.name) != leaving)).first()
    if others is None:
        raise ConflictError(f"{leaving} is the only administrator; make another one first")


def _end_logins(session: Session, name: str) -> None:
    session.exec(delete(Login).where(col(Login.user) == name))
