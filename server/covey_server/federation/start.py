"""Inviting a run's participants with this server's own settings; the one place that API and demo share for it."""

from datetime import timedelta

from sqlmodel import Session

from covey_server.federation import service
from covey_server.federation.models import Run
from covey_server.parts import Parts


def invite(session: Session, run_id: str, *, parts: Parts, actor: str) -> Run:
    """Start a planned run. Raises NotFoundError, ConflictError."""
    settings = parts.settings
    return service.start_run(
        session,
        run_id,
        director=parts.director,
        fleet_api=f"{settings.edge.public_host}:{settings.edge.port}",
        invite_timeout=timedelta(seconds=settings.flower.invite_timeout_s),
        round_timeout=timedelta(seconds=settings.flower.round_timeout_s),
        actor=actor,
        now=parts.clock(),
    )
