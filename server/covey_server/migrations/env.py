"""Alembic's entry: run migrations on the connection that `migrate.py` hands over."""

from alembic import context
from sqlalchemy import Connection

from covey_server.tables import metadata


def run(connection: Connection) -> None:
    """Migrate in batch mode, which is how SQLite alters tables."""
    context.configure(connection=connection, target_metadata=metadata, render_as_batch=True, compare_type=True)
    with context.begin_transaction():
        context.run_migrations()


run(context.config.attributes["connection"])
