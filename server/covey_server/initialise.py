"""Making a new server out of an empty work folder: authority, release metadata, director, database, first user and token.

Every step leaves alone what is there, so a start that was broken off is completed by the next one, and calling it on a running
server changes nothing.
"""

import secrets
from dataclasses import dataclass

from covey_server import migrate
from covey_server.access import service as access
from covey_server.access.models import Role, User
from covey_server.clock import utc_now
from covey_server.db import Database
from covey_server.devices.authority import FileAuthority, write_private
from covey_server.releases.director import FileDirector
from covey_server.releases.repository import TufRepository
from covey_server.settings import TOKEN_FILE, Settings

FIRST_USER = "admin"
PASSWORD_FILE = "admin.password"  # noqa: S105 - a file name


@dataclass(frozen=True, slots=True)
class FirstLogin:
    """How to log in for the first time; `created` is False if the server was there already."""

    created: bool
    user: str
    password: str


def initialise(settings: Settings) -> FirstLogin:
    """Complete the work folder. Raises CoveyServerError when something in it contradicts the rest."""
    settings.path().mkdir(parents=True, exist_ok=True)
    now = utc_now()
    if not settings.path("pki", "ca.crt").exists():
        FileAuthority.create(settings, now=now)
    authority = FileAuthority.open(settings)
    local = {"localhost", "127.0.0.1"}
    authority.issue_server_certificate(sorted({*local, settings.edge.public_host}), role="edge", now=now)
    authority.issue_server_certificate(sorted({*local, settings.broker.public_host, settings.broker.host}), role="broker", now=now)
    authority.issue_server_certificate(sorted(local), role="superlink", now=now)
    authority.issue_gateway_certificate(now=now)
    if not settings.path("tuf", "metadata", "timestamp.json").exists():
        TufRepository.create(settings, now)
    FileDirector.create(settings, TufRepository(settings))
    database = Database(settings.resolved_database_url)
    try:
        migrate.upgrade(database)
        return _first_login(settings, database)
    finally:
        database.close()


def _first_login(settings: Settings, database: Database) -> FirstLogin:
    password_file, token_file = settings.path(PASSWORD_FILE), settings.path(TOKEN_FILE)
    now = utc_now()
    with database.begin() as session:
        created = session.get(User, FIRST_USER) is None
        password = secrets.token_urlsafe(12) if created else ""
        if created:
            access.ensure_admin(session, FIRST_USER, password, now=now)
            write_private(password_file, f"{password}\n".encode())
        if not token_file.exists():
            _, text = access.create_token(session, "admin-cli", role=Role.ADMIN, actor="system", now=now)
            write_private(token_file, f"{text}\n".encode())
    return FirstLogin(created, FIRST_USER, password)
