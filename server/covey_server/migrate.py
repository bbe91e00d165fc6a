"""Bringing a database to the newest schema, and saying whether it is there.

`upgrade(db)` runs at every start of `covey up` and by `covey db upgrade`; it is idempotent. `python -m covey_server.migrate
"message"` writes a new step from the difference between tables and models.
"""

import sys
from pathlib import Path

from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from covey_server.db import Database
from covey_server.tables import metadata

_FOLDER = Path(__file__).parent / "migrations"


def upgrade(db: Database) -> None:
    """Migrate to the newest schema."""
    with db.engine.execution_options(covey_write=True).connect() as connection:
        config = _config()
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        connection.commit()


def is_current(db: Database) -> bool:
    """Whether the database has the newest schema."""
    with db.engine.connect() as connection:
        return MigrationContext.configure(connection).get_current_revision() == newest_revision()


def newest_revision() -> str | None:
    """The id of the newest step."""
    return ScriptDirectory.from_config(_config()).get_current_head()


def differences(db: Database) -> list[object]:
    """What the models say and the database does not, or the other way round; empty when they agree."""
    with db.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        return list(compare_metadata(context, metadata))


def write_step(db: Database, message: str) -> None:
    """Write a new step that turns the database's present schema into the models'."""
    with db.engine.connect() as connection:
        config = _config()
        config.attributes["connection"] = connection
        number = len(list(ScriptDirectory.from_config(config).walk_revisions())) + 1
        command.revision(config, message, autogenerate=True, rev_id=f"{number:04d}")


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(_FOLDER))
    config.set_main_option("path_separator", "os")
    return config


if __name__ == "__main__":
    database = Database(sys.argv[2] if len(sys.argv) > 2 else "sqlite://")
    upgrade(database)
    write_step(database, sys.argv[1])
