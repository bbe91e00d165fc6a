"""Identity for life: renewed certificates, boots that tell a cloned identity, decommissioning."""

import sqlalchemy as sa
from alembic import op

from covey_server.db import UtcDateTime

revision: str = "0003"
down_revision: str | None = "0002"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    """Add the columns and the table."""
    with op.batch_alter_table("certificates") as table:
        for name in ("broker_user", "key_digest", "request"):
            table.add_column(sa.Column(name, sa.String(), nullable=False, server_default=""))
        table.add_column(sa.Column("delivered_at", UtcDateTime(), nullable=True))
        table.add_column(sa.Column("used_at", UtcDateTime(), nullable=True))
        table.create_index("ix_certificates_delivered_at", ["delivered_at"])
    with op.batch_alter_table("devices") as table:
        table.add_column(sa.Column("clone_suspected_at", UtcDateTime(), nullable=True))
        table.add_column(sa.Column("decommission", sa.String(), nullable=False, server_default=""))
        table.add_column(sa.Column("decommission_by", UtcDateTime(), nullable=True))
    op.create_table(
        "device_boots",
        sa.Column("device_id", sa.String(), nullable=False),
        sa.Column("boot", sa.String(), nullable=False),
        sa.Column("first_at", UtcDateTime(), nullable=False),
        sa.Column("last_at", UtcDateTime(), nullable=False),
        sa.Column("said_at", sa.BigInteger(), nullable=False),
        sa.Column("generation", sa.BigInteger(), nullable=False),
        sa.Column("returns", sa.Integer(), nullable=False),
        sa.Column("rewound_at", UtcDateTime(), nullable=True),
        sa.ForeignKeyConstraint(["device_id"], ["devices.id"]),
        sa.PrimaryKeyConstraint("device_id", "boot"),
    )


def downgrade() -> None:
    """Take them away."""
    op.drop_table("device_boots")
    with op.batch_alter_table("devices") as table:
        for name in ("decommission_by", "decommission", "clone_suspected_at"):
            table.drop_column(name)
    with op.batch_alter_table("certificates") as table:
        table.drop_index("ix_certificates_delivered_at")
        for name in ("used_at", "delivered_at", "request", "key_digest", "broker_user"):
            table.drop_column(name)
