"""Between the two programs of a deployment (`deploy`, `fill`): what the first hands to the second, and how both tell of a failure."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec

from covey_agent.core.jobs import DeployFailed, DeployJob, DeployRefused
from covey_agent.workers.errors import NetworkError, RefusedError, StorageError, UntrustedError
from covey_agent.workers.lines import Lines
from covey_contract.errors import ContractError
from covey_contract.limits import MAX_REASON_CHARS
from covey_contract.messages import ReleaseRef

logger = logging.getLogger(__name__)


class FillOrder(msgspec.Struct, frozen=True):
    """A verified order."""

    job: DeployJob
    ref: ReleaseRef
    manifest: bytes  # as it was verified
    round_trip_s: float | None  # how long the server takes to answer a question


@contextmanager
def told(lines: Lines) -> Iterator[None]:
    """What goes wrong becomes the job's final event."""
    try:
        yield
    except RefusedError as exc:
        lines.emit(DeployRefused(reason=_shorten(exc), artifact=exc.artifact))
    except (UntrustedError, ContractError) as exc:
        lines.emit(DeployRefused(reason=_shorten(exc)))
    except (NetworkError, StorageError, OSError) as exc:
        logger.warning("the deployment could not be carried out now: %s", exc)
        lines.emit(DeployFailed(reason=_shorten(exc)))


def _shorten(error: Exception) -> str:
    return str(error)[:MAX_REASON_CHARS]
