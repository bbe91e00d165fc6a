"""Logins of the console: a random cookie secret and a CSRF token, for a user who gave the right password."""

import hmac
from datetime import datetime, timedelta

from sqlmodel import Session, col, delete

from covey_server.access.models import Login, User
from covey_server.access.passwords import hash_password, is_password
from covey_server.access.rules import Actor
from covey_server.access.throttle import Throttle
from covey_server.access.tokens import hash_secret, new_secret
from covey_server.errors import ForbiddenError, UnauthenticatedError

COOKIE_NAME = "covey_login"
CSRF_HEADER = "X-Covey-CSRF"

_throttle = Throttle()  # one per process: guesses are counted wherever they arrive
_decoy_hash: list[str] = []


def create_login(
    session: Session,
    user: str,
    password: str,
    now: datetime,
    *,
    hours: float = 12.0,
    throttle: Throttle = _throttle,
) -> tuple[str, str]:
    """Log a user in; returns (cookie secret, CSRF token). Raises UnauthenticatedError or ThrottledError.

    Put the secret in the cookie `COOKIE_NAME` with HttpOnly, SameSite=Lax, and Secure when the page came by HTTPS.
    """
    throttle.check(user, now=now)
    found = session.get(User, user)
    # An unknown name costs as much time as a wrong password, so that names cannot be told apart by it.
    if not is_password(password, stored=found.password_hash if found else _decoy()) or found is None:
        throttle.fail(user, now=now)
        raise UnauthenticatedError("the user name or password is wrong")
    throttle.succeed(user)
    secret, csrf = new_secret(), new_secret()
    session.add(Login(secret_hash=hash_secret(secret), user=user, csrf=csrf, created_at=now, expires_at=now + timedelta(hours=hours)))
    return secret, csrf


def actor_from_login(session: Session, secret: str, now: datetime) -> tuple[Actor, str]:
    """Who holds this cookie, and the CSRF token of the login. Raises UnauthenticatedError."""
    login = session.get(Login, hash_secret(secret))
    user = session.get(User, login.user) if login is not None and login.expires_at > now else None
    if login is None or user is None:
        raise UnauthenticatedError("the login has ended; log in again")
    return Actor(f"user:{user.name}", user.role), login.csrf


def check_csrf(expected: str, presented: str | None) -> None:
    """Refuse an unsafe request by cookie that does not carry the login's CSRF token."""
    if presented is None or not hmac.compare_digest(expected.encode(), presented.encode("utf-8", "surrogatepass")):
        raise ForbiddenError(f"the {CSRF_HEADER} header is missing or wrong; reload the page")


def end_login(session: Session, secret: str) -> None:
    """Log out; a login that has ended already is no error."""
    session.exec(delete(Login).where(col(Login.secret_hash) == hash_secret(secret)))


def prune_logins(session: Session, *, now: datetime) -> None:
    """Forget logins that have expired."""
    session.exec(delete(Login).where(col(Login.expires_at) <= now))


def _decoy() -> str:
    if not _decoy_hash:
        _decoy_hash.append(hash_password(new_secret()))
    return _decoy_hash[0]
