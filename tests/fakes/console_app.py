"""The console in an app of its own: real database, real logins, none of the parts that pages never touch."""

from pathlib import Path

from fastapi import FastAPI

from covey_server import console
from covey_server.api_errors import install_error_handlers
from covey_server.clock import Clock
from covey_server.db import Database
from covey_server.parts import Parts
from covey_server.settings import Settings
from covey_server.tables import metadata


def open_database(folder: Path) -> Database:
    """A fresh database with every table."""
    db = Database(f"sqlite:///{folder / 'fleet.db'}")
    metadata.create_all(db.engine)
    return db


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
        repository=None,  # type: ignore[arg-type]  # and sign nothing
        director=None,  # type: ignore[arg-type]
    )
    install_error_handlers(app)
    console.mount(app)
    app.include_router(console.router)
    return app
