"""What runs inside Flower's ServerApp process: wire desk, link and judge together and conduct the run.

Flower starts this from the app bundle in `flower_app/`, which holds nothing but the call.
"""

import logging
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid

from covey_server.clock import utc_now
from covey_server.db import Database
from covey_server.errors import ConflictError, InvalidInputError
from covey_server.federation.desk import Desk
from covey_server.federation.grid import GridLink
from covey_server.federation.judge import TaskJudge
from covey_server.federation.models import RunState
from covey_server.federation.rounds import conduct
from covey_server.federation.service import finish_run
from covey_server.releases.store import FolderBlobStore
from covey_server.settings import load_settings

logger = logging.getLogger(__name__)


def drive(grid: Grid, context: Context) -> None:
    """Conduct the run that the configuration names. Whatever goes wrong ends this Flower run; the worker sees it and decides."""
    run_id, work_dir = str(context.run_config["run"]), Path(str(context.run_config["work-dir"]))
    settings = load_settings(work_dir)
    database = Database(settings.resolved_database_url)
    blobs = FolderBlobStore(settings.path("blobs"))
    desk = Desk(db=database, blobs=blobs, clock=utc_now, round_timeout_s=settings.flower.round_timeout_s)
    try:
        _conduct(grid, desk, blobs, run_id=run_id, flower_run=str(context.run_id))
    except ConflictError as exc:
        logger.info("nothing to do: %s", exc)
    except InvalidInputError as exc:  # the same again would end the same way, so the run need not be tried again
        with database.begin() as session:
            finish_run(session, run_id, RunState.FAILED, reason=str(exc), now=utc_now())
    finally:
        database.close()


def _conduct(grid: Grid, desk: Desk, blobs: FolderBlobStore, *, run_id: str, flower_run: str) -> None:
    terms = desk.open_run(run_id, flower_run=flower_run)
    judge = TaskJudge(blobs.read(terms.task_digest), name=terms.task, held_out=terms.held_out)
    conduct(run_id, flower_run=terms.flower_run, desk=desk, link=GridLink(grid), judge=judge)
