"""Passwords, tokens, logins, throttling: who gets in and who does not."""

from datetime import timedelta
from pathlib import Path

import pytest
from sqlmodel import select
from tests.fakes.server_parts import START, TestParts, make_parts

from covey_contract.errors import InvalidIdError
from covey_server.access import logins, service
from covey_server.access.models import ApiToken, Login, Role, User
from covey_server.access.passwords import hash_password, is_password
from covey_server.access.rules import Actor, is_allowed
from covey_server.access.throttle import RateLimit, Throttle
from covey_server.access.tokens import TOKEN_PREFIX
from covey_server.errors import ConflictError, ForbiddenError, InvalidInputError, NotFoundError, ThrottledError, UnauthenticatedError

PASSWORD = "correct horse"


@pytest.fixture
def parts(tmp_path: Path) -> TestParts:
    return make_parts(tmp_path)


@pytest.fixture
def user(parts: TestParts) -> str:
    with parts.db.begin() as session:
        service.ensure_admin(session, "alice", PASSWORD, now=START)
    return "alice"


def log_in(parts: TestParts, user: str = "alice", password: str = PASSWORD, throttle: Throttle | None = None) -> tuple[str, str]:
    with parts.db.begin() as session:
        return logins.create_login(session, user, password, parts.clock(), hours=12, throttle=throttle or Throttle())


@pytest.mark.parametrize("role", Role)
def test_each_role_includes_those_below(role: Role) -> None:
    order = [Role.VIEWER, Role.OPERATOR, Role.ADMIN]
    assert [is_allowed(role, needed=needed) for needed in order] == [order.index(needed) <= order.index(role) for needed in order]


def test_a_password_is_kept_as_argon2id() -> None:
    stored = hash_password(PASSWORD)
    assert stored.startswith("$argon2id$")
    assert is_password(PASSWORD, stored=stored)
    assert not is_password(PASSWORD + " ", stored=stored)
    assert not is_password("x" * 5000, stored=stored)
    assert not is_password(PASSWORD, stored="no hash")


@pytest.mark.parametrize("password", ["", "short", "x" * 1025])
def test_passwords_have_bounds(password: str) -> None:
    with pytest.raises(InvalidInputError):
        hash_password(password)


def test_a_token_lets_its_holder_in_and_is_not_stored(parts: TestParts) -> None:
    with parts.db.begin() as session:
        token, text = service.create_token(session, "ci", role=Role.OPERATOR, actor="user:alice", now=START)
    assert text.startswith(TOKEN_PREFIX)
    assert len(text) >= len(TOKEN_PREFIX) + 43
    assert text not in token.model_dump_json()
    with parts.db.read() as session:
        actor, _ = service.actor_from_token(session, text, now=START)
    assert (actor.name, actor.role) == ("token:ci", Role.OPERATOR)


@pytest.mark.parametrize("fate", ["revoked", "expired", "never made", "cut off", "empty", "surrogate"])
def test_a_token_that_is_not_good_lets_nobody_in(parts: TestParts, fate: str) -> None:
    with parts.db.begin() as session:
        token, text = service.create_token(session, "ci", role=Role.ADMIN, actor="user:alice", now=START, expires_in=timedelta(hours=1))
        if fate == "revoked":
            service.revoke_token(session, token.id, actor="user:alice", now=START)
    now = START + timedelta(hours=1 if fate == "expired" else 0)
    presented = {"never made": TOKEN_PREFIX + "A" * 43, "cut off": text[:-1], "empty": "", "surrogate": "\ud800"}.get(fate, text)
    with parts.db.read() as session, pytest.raises(UnauthenticatedError):
        service.actor_from_token(session, presented, now=now)


@pytest.mark.parametrize("name", ["", "Ci", "a b", "a/b", "x" * 65, "ci\n"])
def test_tokens_and_users_have_plain_names(parts: TestParts, name: str) -> None:
    with parts.db.begin() as session:
        with pytest.raises(InvalidIdError):
            service.create_token(session, name, role=Role.VIEWER, actor="system", now=START)
        with pytest.raises(InvalidIdError):
            service.create_user(session, name, password=PASSWORD, role=Role.VIEWER, actor="system", now=START)


def test_revoking_a_token_that_is_none_says_so(parts: TestParts) -> None:
    with parts.db.begin() as session, pytest.raises(NotFoundError):
        service.revoke_token(session, "none", actor="system", now=START)


def test_the_first_administrator_is_made_once_and_keeps_its_password(parts: TestParts, user: str) -> None:
    with parts.db.begin() as session:
        service.ensure_admin(session, user, "another one", now=START)
        row = session.exec(select(User)).one()
    assert row.role is Role.ADMIN
    assert is_password(PASSWORD, stored=row.password_hash)


def test_the_last_administrator_stays(parts: TestParts, user: str) -> None:
    with parts.db.begin() as session:
        with pytest.raises(ConflictError):
            service.delete_user(session, user, actor="user:alice")
        with pytest.raises(ConflictError):
            service.change_user(session, user, role=Role.VIEWER, actor="user:alice")
        service.create_user(session, "bob", password=PASSWORD, role=Role.ADMIN, actor="user:alice", now=START)
        service.change_user(session, user, role=Role.VIEWER, actor="user:bob")
        service.delete_user(session, user, actor="user:bob")


def test_a_login_lasts_its_time_and_its_secret_is_not_stored(parts: TestParts, user: str) -> None:
    secret, csrf = log_in(parts)
    with parts.db.read() as session:
        assert logins.actor_from_login(session, secret, START + timedelta(hours=11)) == (Actor("user:alice", Role.ADMIN), csrf)
        assert secret not in session.exec(select(Login)).one().model_dump_json()
        with pytest.raises(UnauthenticatedError):
            logins.actor_from_login(session, secret, START + timedelta(hours=12))


@pytest.mark.parametrize(
    ("name", "password"), [("alice", "wrong horse"), ("nobody", PASSWORD), ("alice", ""), ("", ""), ("alice", "x" * 9999)]
)
def test_a_wrong_name_or_password_is_refused_in_the_same_words(parts: TestParts, user: str, name: str, password: str) -> None:
    with pytest.raises(UnauthenticatedError, match="the user name or password is wrong"):
        log_in(parts, name, password)


def test_logging_out_and_a_new_password_end_logins(parts: TestParts, user: str) -> None:
    first, _ = log_in(parts)
    second, _ = log_in(parts)
    with parts.db.begin() as session:
        logins.end_login(session, first)
        with pytest.raises(UnauthenticatedError):
            logins.actor_from_login(session, first, START)
        logins.actor_from_login(session, second, START)
        service.change_user(session, user, password="another horse", actor="user:alice")
    with parts.db.read() as session, pytest.raises(UnauthenticatedError):
        logins.actor_from_login(session, second, START)


def test_a_role_that_was_taken_away_ends_with_the_next_request(parts: TestParts, user: str) -> None:
    secret, _ = log_in(parts)
    with parts.db.begin() as session:
        service.create_user(session, "bob", password=PASSWORD, role=Role.ADMIN, actor="system", now=START)
        service.change_user(session, user, role=Role.VIEWER, actor="user:bob")
    with parts.db.read() as session:
        assert logins.actor_from_login(session, secret, START)[0].role is Role.VIEWER


def test_ended_logins_are_forgotten(parts: TestParts, user: str) -> None:
    log_in(parts)
    with parts.db.begin() as session:
        logins.prune_logins(session, now=START + timedelta(hours=13))
        assert session.exec(select(Login)).all() == []


@pytest.mark.parametrize("presented", [None, "", "wrong", "\ud800"])
def test_a_wrong_csrf_token_is_refused(presented: str | None) -> None:
    with pytest.raises(ForbiddenError):
        logins.check_csrf("right", presented)


def test_guessing_is_slowed_down_and_the_right_password_waits_too(parts: TestParts, user: str) -> None:
    throttle = Throttle(free=2, first=timedelta(seconds=10), longest=timedelta(seconds=60))
    for _ in range(2):
        with pytest.raises(UnauthenticatedError):
            log_in(parts, password="wrong horse", throttle=throttle)
    with pytest.raises(ThrottledError) as refused:
        log_in(parts, throttle=throttle)
    assert refused.value.retry_after_s == 10
    parts.clock.advance(seconds=10)
    log_in(parts, throttle=throttle)


def test_the_wait_doubles_up_to_a_bound() -> None:
    throttle = Throttle(free=1, first=timedelta(seconds=2), longest=timedelta(seconds=60))
    waits: list[float] = []
    now = START
    for _ in range(8):
        throttle.fail("k", now=now)
        with pytest.raises(ThrottledError) as refused:
            throttle.check("k", now=now)
        waits.append(refused.value.retry_after_s)
        now += timedelta(seconds=refused.value.retry_after_s)
    assert waits == [2, 4, 8, 16, 32, 60, 60, 60]
    throttle.check("another", now=now)


def test_a_rate_is_an_average_with_bursts() -> None:
    limit = RateLimit(burst=3, per_second=0.5)
    for _ in range(3):
        limit.take("k", now=START)
    with pytest.raises(ThrottledError):
        limit.take("k", now=START + timedelta(seconds=1))
    limit.take("other", now=START)
    limit.take("k", now=START + timedelta(seconds=2))
    with pytest.raises(ThrottledError):
        limit.take("k", now=START + timedelta(seconds=2))


def test_a_flood_of_names_does_not_fill_the_memory() -> None:
    throttle, limit = Throttle(), RateLimit(burst=1, per_second=1)
    for number in range(10_100):
        throttle.fail(str(number), now=START)
        limit.take(str(number), now=START)
    assert len(throttle._failures) == len(limit._buckets) == 10_000


def test_every_token_is_another(parts: TestParts) -> None:
    with parts.db.begin() as session:
        texts = {service.create_token(session, "ci", role=Role.VIEWER, actor="system", now=START)[1] for _ in range(20)}
        assert len(texts) == len(session.exec(select(ApiToken)).all()) == 20
