"""The console in an app of its own: real database, real logins, none of the parts that pages never touch."""

from datetime import datetime, timedelta
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from fastapi import FastAPI
from tests.fakes.server_parts import KeyDirector, share_compiled_statements

from covey_server import console
from covey_server.access.models import Login, Role, User
from covey_server.access.tokens import hash_secret
from covey_server.api_errors import install_error_handlers
from covey_server.clock import Clock
from covey_server.db import Database
from covey_server.parts import Parts
from covey_server.settings import Settings
from covey_server.tables import metadata


def open_database(folder: Path) -> Database:
    """A fresh database with every table."""
    (folder / "fleet.db").write_bytes(_empty_file())
    return share_compiled_statements(Database(f"sqlite:///{folder / 'fleet.db'}"))


@cache
def _empty_file() -> bytes:
    """Creating forty tables takes longer than most tests that need them, so it is done once and copied."""
    with TemporaryDirectory() as folder:
        db = Database(f"sqlite:///{folder}/fleet.db")
        metadata.create_all(db.engine)
        db.close()  # the last connection writes the log back into the file
        return Path(folder, "fleet.db").read_bytes()


def log_in_as(db: Database, role: Role, *, now: datetime) -> tuple[str, str]:
    """A user's cookie secret and CSRF token, without the slow password."""
    secret, csrf = f"secret-{role.value}", f"csrf-{role.value}"
    with db.begin() as session:
        session.add(User(name=role.value, password_hash="none", role=role))
        session.flush()
        session.add(Login(secret_hash=hash_secret(secret), user=role.value, csrf=csrf, expires_at=now + timedelta(hours=1)))
    return secret, csrf


def build_console(db: Database, *, clock: Clock, folder: Path) -> FastAPI:
    """An app that serves the console alone."""
    app = FastAPI(openapi_url=None)
    app.state.parts = Parts(
        settings=Settings(work_dir=folder, fleet_name="harbour"),
        db=db,
        clock=clock,
        authority=None,  # type: ignore[arg-type]  # pages issue no certificates,
        permissions=None,  # type: ignore[arg-type]  # speak to no broker,
        blobs=None,  # type: ignore[arg-type]  # read no artifacts
        repository=None,  # type: ignore[arg-type]  # and sign no releases
        director=KeyDirector(),
    )
    install_error_handlers(app)
    console.mount(app)
    app.include_router(console.router)
    return app
