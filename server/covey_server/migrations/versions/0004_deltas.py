"""Deltas between artifacts."""

import sqlalchemy as sa
from alembic import op

from covey_server.db import UtcDateTime

revision: str = "0004"
down_revision: str | None = "0003"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    """Add the table."""
    op.create_table(
        "deltas",
        sa.Column("base", sa.String(), nullable=False),
        sa.Column("target", sa.String(), nullable=False),
        sa.Column("state", sa.Enum("MAKING", "READY", "NONE", name="deltarowstate"), nullable=False),
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("length", sa.Integer(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("base", "target"),
    )
    for column in ("digest", "state", "target"):
        op.create_index(f"ix_deltas_{column}", "deltas", [column])


def downgrade() -> None:
    """Take it away again."""
    op.drop_table("deltas")
