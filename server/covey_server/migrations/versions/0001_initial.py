"""initial schema."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

import covey_server.db

revision: str = "0001"
down_revision: str | None = None
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    """Apply this step."""
    op.create_table(
        "alerts",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("at", covey_server.db.UtcDateTime(timezone=True), nullable=False),
        sa.Column("severity", sa.Enum("INFO", "WARNING", "CRITICAL", name="severity"), nullable=False),
        sa.Column("what", sa.String(), nullable=False),
        sa.Column("detail", sa.String(), nullable=False),
        sa.Column("device_id", sa.String(), nullable=True),
        sa.Column("subject", sa.String(), nullable=False),
        sa.Column("acknowledged_at", covey_server.db.UtcDateTime(timezone=True), nullable=True),
        sa.Column("acknowledged_by", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    with op.batch_alter_table("alerts", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_alerts_at"), ["at"], unique=False)
        batch_op.create_index(batch_op.f("ix_alerts_device_id"), ["device_id"], unique=False)

    op.create_table(
        "api_tokens",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("secret_hash", sa.String(), nullable=False),
        sa.Column("role", sa.Enum("VIEWER", "OPERATOR", "ADMIN", name="role"), nullable=False),
        sa.Column("created_at", covey_server.db.UtcDateTime(timezone=True), nullable=False),
        sa.Column("expires_at", covey_server.db.UtcDateTime(timezone=True), nullable=True),
        sa.Column("revoked_at", covey_server.db.UtcDateTime(timezone=True), nullable=True),
        sa.Column("last_used_at", covey_server.db.UtcDateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    with op.batch_alter_table("api_tokens", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_api_tokens_secret_hash"), ["secret_hash"], unique=True)

    op.create_table(
        "artifacts",
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("length", sa.Integer(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("created_at", covey_server.db.UtcDateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("digest"),
    )
    op.create_table(
        "audit_events",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("at", covey_server.db.UtcDateTime(timezone=True), nullable=False),
        sa.Column("actor", sa.String(), nullable=False),
        sa.Column("action", sa.String(), nullable=False),
        sa.Column("subject", sa.String(), nullable=False),
        sa.Column("detail", sa.JSON().with_variant(sa.JSON(none_as_null=True), "sqlite"), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    with op.batch_alter_table("audit_events", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_audit_events_action"), ["action"], unique=False)
        batch_op.create_index(batch_op.f("ix_audit_events_at"), ["at"], unique=False)

    op.create_table(
        "counters",
        sa.Column("process", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("label", sa.String(), nullable=False),
        sa.Column("value", sa.Float(), nullable=False),
        sa.Column("updated_at", covey_server.db.UtcDateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("process", "name", "label"),
    )
    op.create_table(
        "devices",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("profile", sa.String(), nullable=False),
        sa.Column("state", sa.Enum("ACTIVE", "REVOKED", name="devicestate"), nullable=False),
        sa.Column("labels", sa.JSON().with_variant(sa.JSON(none_as_null=True), "sqlite"), nullable=False),
        sa.Column("enrolled_at", covey_server.db.UtcDateTime(timezone=True), nullable=False),
        sa.Column("certificate_serial", sa.String(), nullable=False),
        sa.Column("certificate_expires_at", covey_server.db.UtcDateTime(timezone=True), nullable=True),
        sa.Column("supernode_public_key", sa.String(), nullable=False),
        sa.Column("supernode_id", sa.String(), nullable=False),
        sa.Column("presence", sa.Enum("NEVER", "ONLINE", "OFFLINE", name="devicepresence"), nullable=False),
        sa.Column("presence_at", covey_server.db.UtcDateTime(timezone=True), nullable=True),
        sa.Column("boot", sa.String(), nullable=False),
        sa.Column("last_seen_at", covey_server.db.UtcDateTime(timezone=True), nullable=True),
        sa.Column("agent_version", sa.String(), nullable=False),
        sa.Column("reported_generation", sa.Integer(), nullable=False),
        sa.Column("reported", sa.JSON().with_variant(sa.JSON(none_as_null=True), "sqlite"), nullable=False),
        sa.Column("serving_model", sa.String(), nullable=False),
        sa.Column("serving_version", sa.Integer(), nullable=False),
        sa.Column("serving_variant", sa.String(), nullable=False),
        sa.Column("active_slot", sa.String(), nullable=False),
        sa.Column("deployment_state", sa.String(), nullable=False),
        sa.Column("training", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    with op.batch_alter_table("devices", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_devices_presence"), ["presence"], unique=False)

    op.create_table(
        "idempotency_keys",
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("actor", sa.String(), nullable=False),
        sa.Column("route", sa.String(), nullable=False),
        sa.Column("request_hash", sa.String(), nullable=False),
        sa.Column("status", sa.Integer(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", covey_server.db.UtcDateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("key", "actor"),
    )
    op.create_table(
        "invitations",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("device_id", sa.String(), nullable=False),
        sa.Column("profile", sa.String(), nullable=False),
        sa.Column("labels", sa.JSON().with_variant(sa.JSON(none_as_null=True), "sqlite"), nullable=False),
        sa.Column("secret_hash", sa.String(), nullable=False),
        sa.Column("created_by", sa.String(), nullable=False),
        sa.Column("created_at", covey_server.db.UtcDateTime(timezone=True), nullable=False),
        sa.Column("expires_at", covey_server.db.UtcDateTime(timezone=True), nullable=False),
        sa.Column("used_at", covey_server.db.UtcDateTime(timezone=True), nullable=True),
        sa.Column("withdrawn_at", covey_server.db.UtcDateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    with op.batch_alter_table("invitations", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_invitations_device_id"), ["device_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_invitations_secret_hash"), ["secret_hash"], unique=True)

    op.create_table(
        "live_events",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("at", covey_server.db.UtcDateTime(timezone=True), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("data", sa.JSON().with_variant(sa.JSON(none_as_null=True), "sqlite"), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    with op.batch_alter_table("live_events", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_live_events_at"), ["at"], unique=False)

    op.create_table(
        "outbox",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("created_at", covey_server.db.UtcDateTime(timezone=True), nullable=False),
        sa.Column("topic", sa.String(), nullable=False),
        sa.Column("payload", sa.LargeBinary(), nullable=False),
        sa.Column("retain", sa.Boolean(), nullable=False),
        sa.Column("sent_at", covey_server.db.UtcDateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    with op.batch_alter_table("outbox", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_outbox_sent_at"), ["sent_at"], unique=False)

    op.create_table(
        "privacy_events",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("at", covey_server.db.UtcDateTime(timezone=True), nullable=False),
        sa.Column("kind", sa.Enum("CHARGE", "VOID", name="privacyeventkind"), nullable=False),
        sa.Column("device_id", sa.String(), nullable=False),
        sa.Column("dataset", sa.String(), nullable=False),
        sa.Column("run_id", sa.String(), nullable=False),
        sa.Column("round", sa.Integer(), nullable=False),
        sa.Column("level", sa.String(), nullable=False),
        sa.Column("noise_multiplier", sa.Float(), nullable=False),
        sa.Column("clipping_norm", sa.Float(), nullable=False),
        sa.Column("sample_rate", sa.Float(), nullable=False),
        sa.Column("steps", sa.Integer(), nullable=False),
        sa.Column("delta", sa.Float(), nullable=False),
        sa.Column("voids", sa.Integer(), nullable=True),
        sa.Column("reason", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("voids"),
    )
    with op.batch_alter_table("privacy_events", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_privacy_events_dataset"), ["dataset"], unique=False)
        batch_op.create_index(batch_op.f("ix_privacy_events_device_id"), ["device_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_privacy_events_run_id"), ["run_id"], unique=False)

    op.create_table(
        "reading_streams",
        sa.Column("device_id", sa.String(), nullable=False),
        sa.Column("epoch", sa.String(), nullable=False),
        sa.Column("upto", sa.Integer(), nullable=False),
        sa.Column("stored", sa.Integer(), nullable=False),
        sa.Column("duplicates", sa.Integer(), nullable=False),
        sa.Column("lost", sa.JSON().with_variant(sa.JSON(none_as_null=True), "sqlite"), nullable=False),
        sa.Column("updated_at", covey_server.db.UtcDateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("device_id", "epoch"),
    )
    op.create_table(
        "readings",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("device_id", sa.String(), nullable=False),
        sa.Column("epoch", sa.String(), nullable=False),
        sa.Column("sequence", sa.Integer(), nullable=False),
        sa.Column("at", covey_server.db.UtcDateTime(timezone=True), nullable=False),
        sa.Column("received_at", covey_server.db.UtcDateTime(timezone=True), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("values", sa.JSON().with_variant(sa.JSON(none_as_null=True), "sqlite"), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("device_id", "epoch", "sequence"),
    )
    with op.batch_alter_table("readings", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_readings_at"), ["at"], unique=False)
        batch_op.create_index("ix_readings_device_kind_at", ["device_id", "kind", "at"], unique=False)

    op.create_table(
        "releases",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("model", sa.String(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("state", sa.Enum("BUILDING", "FAILED", "PUBLISHED", "WITHDRAWN", name="releasestate"), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("source", sa.String(), nullable=False),
        sa.Column("run_id", sa.String(), nullable=True),
        sa.Column("manifest_digest", sa.String(), nullable=False),
        sa.Column("labels", sa.JSON().with_variant(sa.JSON(none_as_null=True), "sqlite"), nullable=False),
        sa.Column("lineage", sa.JSON().with_variant(sa.JSON(none_as_null=True), "sqlite"), nullable=False),
        sa.Column("progress", sa.String(), nullable=False),
        sa.Column("note", sa.String(), nullable=False),
        sa.Column("created_by", sa.String(), nullable=False),
        sa.Column("created_at", covey_server.db.UtcDateTime(timezone=True), nullable=False),
        sa.Column("published_at", covey_server.db.UtcDateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("model", "version"),
    )
    with op.batch_alter_table("releases", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_releases_model"), ["model"], unique=False)
        batch_op.create_index(batch_op.f("ix_releases_run_id"), ["run_id"], unique=False)

    op.create_table(
        "tasks",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("purpose", sa.String(), nullable=False),
        sa.Column("dataset", sa.String(), nullable=False),
        sa.Column("labels", sa.JSON().with_variant(sa.JSON(none_as_null=True), "sqlite"), nullable=False),
        sa.Column("created_by", sa.String(), nullable=False),
        sa.Column("created_at", covey_server.db.UtcDateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("name", "digest"),
    )
    with op.batch_alter_table("tasks", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_tasks_digest"), ["digest"], unique=False)
        batch_op.create_index(batch_op.f("ix_tasks_name"), ["name"], unique=False)

    op.create_table(
        "users",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("password_hash", sa.String(), nullable=False),
        sa.Column("role", sa.Enum("VIEWER", "OPERATOR", "ADMIN", name="role"), nullable=False),
        sa.Column("created_at", covey_server.db.UtcDateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "certificates",
        sa.Column("serial", sa.String(), nullable=False),
        sa.Column("device_id", sa.String(), nullable=False),
        sa.Column("issued_at", covey_server.db.UtcDateTime(timezone=True), nullable=False),
        sa.Column("expires_at", covey_server.db.UtcDateTime(timezone=True), nullable=False),
        sa.Column("revoked_at", covey_server.db.UtcDateTime(timezone=True), nullable=True),
        sa.Column("pem", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(
            ["device_id"],
            ["devices.id"],
        ),
        sa.PrimaryKeyConstraint("serial"),
    )
    with op.batch_alter_table("certificates", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_certificates_device_id"), ["device_id"], unique=False)

    op.create_table(
        "logins",
        sa.Column("secret_hash", sa.String(), nullable=False),
        sa.Column("user", sa.String(), nullable=False),
        sa.Column("csrf", sa.String(), nullable=False),
        sa.Column("created_at", covey_server.db.UtcDateTime(timezone=True), nullable=False),
        sa.Column("expires_at", covey_server.db.UtcDateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["user"],
            ["users.name"],
        ),
        sa.PrimaryKeyConstraint("secret_hash"),
    )
    with op.batch_alter_table("logins", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_logins_user"), ["user"], unique=False)

    op.create_table(
        "quarantine",
        sa.Column("device_id", sa.String(), nullable=False),
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("at", covey_server.db.UtcDateTime(timezone=True), nullable=False),
        sa.Column("released_at", covey_server.db.UtcDateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["device_id"],
            ["devices.id"],
        ),
        sa.PrimaryKeyConstraint("device_id", "digest"),
    )
    op.create_table(
        "release_builds",
        sa.Column("release_id", sa.Integer(), nullable=False),
        sa.Column("request", sa.JSON().with_variant(sa.JSON(none_as_null=True), "sqlite"), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("worker", sa.String(), nullable=False),
        sa.Column("heartbeat_at", covey_server.db.UtcDateTime(timezone=True), nullable=True),
        sa.Column("created_at", covey_server.db.UtcDateTime(timezone=True), nullable=False),
        sa.Column("finished_at", covey_server.db.UtcDateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["release_id"],
            ["releases.id"],
        ),
        sa.PrimaryKeyConstraint("release_id"),
    )
    with op.batch_alter_table("release_builds", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_release_builds_finished_at"), ["finished_at"], unique=False)

    op.create_table(
        "rollouts",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("release_id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("state", sa.Enum("DRAFT", "RUNNING", "PAUSED", "HALTED", "COMPLETED", "CANCELLED", name="rolloutstate"), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("selector", sa.JSON().with_variant(sa.JSON(none_as_null=True), "sqlite"), nullable=False),
        sa.Column("phases", sa.JSON().with_variant(sa.JSON(none_as_null=True), "sqlite"), nullable=False),
        sa.Column("current_phase", sa.Integer(), nullable=False),
        sa.Column("probation_s", sa.Float(), nullable=False),
        sa.Column("deadline_s", sa.Float(), nullable=False),
        sa.Column("revert_on_halt", sa.Boolean(), nullable=False),
        sa.Column("created_by", sa.String(), nullable=False),
        sa.Column("created_at", covey_server.db.UtcDateTime(timezone=True), nullable=False),
        sa.Column("started_at", covey_server.db.UtcDateTime(timezone=True), nullable=True),
        sa.Column("finished_at", covey_server.db.UtcDateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["release_id"],
            ["releases.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
    )
    with op.batch_alter_table("rollouts", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_rollouts_release_id"), ["release_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_rollouts_state"), ["state"], unique=False)

    op.create_table(
        "runs",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("task_id", sa.Integer(), nullable=False),
        sa.Column("model", sa.String(), nullable=False),
        sa.Column("state", sa.Enum("PLANNED", "INVITING", "RUNNING", "COMPLETED", "FAILED", "STOPPED", name="runstate"), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("rounds_total", sa.Integer(), nullable=False),
        sa.Column("rounds_done", sa.Integer(), nullable=False),
        sa.Column("plan", sa.JSON().with_variant(sa.JSON(none_as_null=True), "sqlite"), nullable=False),
        sa.Column("hyperparameters", sa.JSON().with_variant(sa.JSON(none_as_null=True), "sqlite"), nullable=False),
        sa.Column("predicted_epsilon", sa.Float(), nullable=True),
        sa.Column("min_participants", sa.Integer(), nullable=False),
        sa.Column("invite_deadline", covey_server.db.UtcDateTime(timezone=True), nullable=True),
        sa.Column("held_out", sa.String(), nullable=False),
        sa.Column("flower_run_id", sa.String(), nullable=False),
        sa.Column("checkpoint", sa.String(), nullable=False),
        sa.Column("references", sa.JSON().with_variant(sa.JSON(none_as_null=True), "sqlite"), nullable=False),
        sa.Column("created_by", sa.String(), nullable=False),
        sa.Column("created_at", covey_server.db.UtcDateTime(timezone=True), nullable=False),
        sa.Column("started_at", covey_server.db.UtcDateTime(timezone=True), nullable=True),
        sa.Column("finished_at", covey_server.db.UtcDateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["task_id"],
            ["tasks.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
    )
    with op.batch_alter_table("runs", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_runs_state"), ["state"], unique=False)
        batch_op.create_index(batch_op.f("ix_runs_task_id"), ["task_id"], unique=False)

    op.create_table(
        "variants",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("release_id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("precision", sa.String(), nullable=False),
        sa.Column("runtime", sa.String(), nullable=False),
        sa.Column("min_runtime_version", sa.String(), nullable=False),
        sa.Column("artifact", sa.String(), nullable=False),
        sa.Column("length", sa.Integer(), nullable=False),
        sa.Column("accepted", sa.Boolean(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("accuracy", sa.Float(), nullable=True),
        sa.Column("accuracy_drop", sa.Float(), nullable=True),
        sa.Column("relative_error", sa.Float(), nullable=True),
        sa.Column("latency_ms", sa.Float(), nullable=True),
        sa.Column("size_ratio", sa.Float(), nullable=True),
        sa.ForeignKeyConstraint(
            ["release_id"],
            ["releases.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("release_id", "name"),
    )
    with op.batch_alter_table("variants", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_variants_release_id"), ["release_id"], unique=False)

    op.create_table(
        "contributions",
        sa.Column("run_id", sa.String(), nullable=False),
        sa.Column("round", sa.Integer(), nullable=False),
        sa.Column("device_id", sa.String(), nullable=False),
        sa.Column("state", sa.Enum("SENT", "RECEIVED", "REFUSED", "MISSING", name="contributionstate"), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("seconds", sa.Float(), nullable=True),
        sa.Column("at", covey_server.db.UtcDateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["device_id"],
            ["devices.id"],
        ),
        sa.ForeignKeyConstraint(
            ["run_id"],
            ["runs.id"],
        ),
        sa.PrimaryKeyConstraint("run_id", "round", "device_id"),
    )
    op.create_table(
        "desired_states",
        sa.Column("device_id", sa.String(), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("release_id", sa.Integer(), nullable=True),
        sa.Column("rollout_id", sa.String(), nullable=True),
        sa.Column("signed", sa.LargeBinary(), nullable=False),
        sa.Column("updated_at", covey_server.db.UtcDateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["device_id"],
            ["devices.id"],
        ),
        sa.ForeignKeyConstraint(
            ["release_id"],
            ["releases.id"],
        ),
        sa.ForeignKeyConstraint(
            ["rollout_id"],
            ["rollouts.id"],
        ),
        sa.PrimaryKeyConstraint("device_id"),
    )
    op.create_table(
        "rollout_devices",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("rollout_id", sa.String(), nullable=False),
        sa.Column("device_id", sa.String(), nullable=False),
        sa.Column("phase", sa.Integer(), nullable=False),
        sa.Column("deployment_id", sa.String(), nullable=False),
        sa.Column(
            "state",
            sa.Enum("PENDING", "SENT", "ACTIVE", "SUCCEEDED", "FAILED", "UNRESPONSIVE", "SKIPPED", name="rolloutdevicestate"),
            nullable=False,
        ),
        sa.Column("deployment_state", sa.String(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("variant", sa.String(), nullable=False),
        sa.Column("variant_reason", sa.String(), nullable=False),
        sa.Column("chunks_done", sa.Integer(), nullable=False),
        sa.Column("chunks_total", sa.Integer(), nullable=False),
        sa.Column("bytes_received", sa.Integer(), nullable=False),
        sa.Column("rollback_ms", sa.Float(), nullable=True),
        sa.Column("previous_release_id", sa.Integer(), nullable=True),
        sa.Column("revert_deployment_id", sa.String(), nullable=False),
        sa.Column("reverted_at", covey_server.db.UtcDateTime(timezone=True), nullable=True),
        sa.Column("progressed_at", covey_server.db.UtcDateTime(timezone=True), nullable=True),
        sa.Column("sent_at", covey_server.db.UtcDateTime(timezone=True), nullable=True),
        sa.Column("heard_at", covey_server.db.UtcDateTime(timezone=True), nullable=True),
        sa.Column("finished_at", covey_server.db.UtcDateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["device_id"],
            ["devices.id"],
        ),
        sa.ForeignKeyConstraint(
            ["previous_release_id"],
            ["releases.id"],
        ),
        sa.ForeignKeyConstraint(
            ["rollout_id"],
            ["rollouts.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("rollout_id", "device_id"),
    )
    with op.batch_alter_table("rollout_devices", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_rollout_devices_deployment_id"), ["deployment_id"], unique=True)
        batch_op.create_index(batch_op.f("ix_rollout_devices_device_id"), ["device_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_rollout_devices_revert_deployment_id"), ["revert_deployment_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_rollout_devices_rollout_id"), ["rollout_id"], unique=False)

    op.create_table(
        "rounds",
        sa.Column("run_id", sa.String(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("started_at", covey_server.db.UtcDateTime(timezone=True), nullable=False),
        sa.Column("finished_at", covey_server.db.UtcDateTime(timezone=True), nullable=True),
        sa.Column("sampled", sa.Integer(), nullable=False),
        sa.Column("contributors", sa.Integer(), nullable=False),
        sa.Column("accuracy", sa.Float(), nullable=True),
        sa.Column("loss", sa.Float(), nullable=True),
        sa.Column("checkpoint", sa.String(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(
            ["run_id"],
            ["runs.id"],
        ),
        sa.PrimaryKeyConstraint("run_id", "number"),
    )
    op.create_table(
        "run_participants",
        sa.Column("run_id", sa.String(), nullable=False),
        sa.Column("device_id", sa.String(), nullable=False),
        sa.Column("command_id", sa.String(), nullable=False),
        sa.Column("state", sa.Enum("INVITED", "ACCEPTED", "REFUSED", name="participantstate"), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("invited_at", covey_server.db.UtcDateTime(timezone=True), nullable=False),
        sa.Column("replied_at", covey_server.db.UtcDateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["device_id"],
            ["devices.id"],
        ),
        sa.ForeignKeyConstraint(
            ["run_id"],
            ["runs.id"],
        ),
        sa.PrimaryKeyConstraint("run_id", "device_id"),
    )
    with op.batch_alter_table("run_participants", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_run_participants_command_id"), ["command_id"], unique=False)


def downgrade() -> None:
    """Take this step back."""
    with op.batch_alter_table("run_participants", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_run_participants_command_id"))

    op.drop_table("run_participants")
    op.drop_table("rounds")
    with op.batch_alter_table("rollout_devices", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_rollout_devices_rollout_id"))
        batch_op.drop_index(batch_op.f("ix_rollout_devices_revert_deployment_id"))
        batch_op.drop_index(batch_op.f("ix_rollout_devices_device_id"))
        batch_op.drop_index(batch_op.f("ix_rollout_devices_deployment_id"))

    op.drop_table("rollout_devices")
    op.drop_table("desired_states")
    op.drop_table("contributions")
    with op.batch_alter_table("variants", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_variants_release_id"))

    op.drop_table("variants")
    with op.batch_alter_table("runs", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_runs_task_id"))
        batch_op.drop_index(batch_op.f("ix_runs_state"))

    op.drop_table("runs")
    with op.batch_alter_table("rollouts", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_rollouts_state"))
        batch_op.drop_index(batch_op.f("ix_rollouts_release_id"))

    op.drop_table("rollouts")
    with op.batch_alter_table("release_builds", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_release_builds_finished_at"))

    op.drop_table("release_builds")
    op.drop_table("quarantine")
    with op.batch_alter_table("logins", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_logins_user"))

    op.drop_table("logins")
    with op.batch_alter_table("certificates", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_certificates_device_id"))

    op.drop_table("certificates")
    op.drop_table("users")
    with op.batch_alter_table("tasks", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_tasks_name"))
        batch_op.drop_index(batch_op.f("ix_tasks_digest"))

    op.drop_table("tasks")
    with op.batch_alter_table("releases", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_releases_run_id"))
        batch_op.drop_index(batch_op.f("ix_releases_model"))

    op.drop_table("releases")
    with op.batch_alter_table("readings", schema=None) as batch_op:
        batch_op.drop_index("ix_readings_device_kind_at")
        batch_op.drop_index(batch_op.f("ix_readings_at"))

    op.drop_table("readings")
    op.drop_table("reading_streams")
    with op.batch_alter_table("privacy_events", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_privacy_events_run_id"))
        batch_op.drop_index(batch_op.f("ix_privacy_events_device_id"))
        batch_op.drop_index(batch_op.f("ix_privacy_events_dataset"))

    op.drop_table("privacy_events")
    with op.batch_alter_table("outbox", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_outbox_sent_at"))

    op.drop_table("outbox")
    with op.batch_alter_table("live_events", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_live_events_at"))

    op.drop_table("live_events")
    with op.batch_alter_table("invitations", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_invitations_secret_hash"))
        batch_op.drop_index(batch_op.f("ix_invitations_device_id"))

    op.drop_table("invitations")
    op.drop_table("idempotency_keys")
    with op.batch_alter_table("devices", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_devices_presence"))

    op.drop_table("devices")
    op.drop_table("counters")
    with op.batch_alter_table("audit_events", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_audit_events_at"))
        batch_op.drop_index(batch_op.f("ix_audit_events_action"))

    op.drop_table("audit_events")
    op.drop_table("artifacts")
    with op.batch_alter_table("api_tokens", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_api_tokens_secret_hash"))

    op.drop_table("api_tokens")
    with op.batch_alter_table("alerts", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_alerts_device_id"))
        batch_op.drop_index(batch_op.f("ix_alerts_at"))

    op.drop_table("alerts")
