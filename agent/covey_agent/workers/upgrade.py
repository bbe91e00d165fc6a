"""`python -m covey_agent.workers.upgrade`: carry out the fleet's order to put another version of this agent on trial.

UpgradeJob -> UpgradeStaged | Rejected (final) | VerifyFailed (may be ordered again)

The order is signed by the director, and the wheel is a TUF target, so both keys would have to be stolen to bring in foreign code. Killed
anywhere, the present version stays current (`versions_file.py`).
"""

from datetime import UTC, datetime
from pathlib import Path

from covey_agent.core.jobs import Rejected, UpgradeJob, UpgradeStaged, VerifyFailed
from covey_agent.errors import StateError, UsageError
from covey_agent.service.switch import switch_version
from covey_agent.versions import FOLDER
from covey_agent.workers.errors import NetworkError, RefusedError, StorageError, UntrustedError
from covey_agent.workers.lines import Lines
from covey_agent.workers.link import BulkLink
from covey_agent.workers.trust import TrustedMetadata
from covey_contract.codec import decode
from covey_contract.errors import ContractError
from covey_contract.ids import agent_wheel
from covey_contract.limits import MAX_REASON_CHARS
from covey_contract.messages import Signed, UpgradeAgent


def main() -> None:
    """Do the job on standard input and end."""
    lines = Lines.take_over()
    job = lines.read_job(UpgradeJob)
    try:
        lines.emit(UpgradeStaged(version=upgrade(job)))
    except (UntrustedError, RefusedError, UsageError, StateError, ContractError) as exc:
        lines.emit(Rejected(reason=str(exc)[:MAX_REASON_CHARS]))
    except (NetworkError, StorageError, OSError) as exc:
        lines.emit(VerifyFailed(reason=str(exc)[:MAX_REASON_CHARS]))


def upgrade(job: UpgradeJob) -> str:
    """Fetch, install, switch. Raises whatever `main` turns into a final event."""
    state_dir = Path(job.state_dir)
    with BulkLink(job.broker, role="upgrade") as link:
        trusted = TrustedMetadata(state_dir, link.fetch_part)
        trusted.refresh()
        order = trusted.verify_order(decode(job.order, Signed), device=job.broker.device, now=datetime.now(UTC))
        if not isinstance(order, UpgradeAgent):
            raise RefusedError(f"expected an order to upgrade, got {type(order).__name__}")
        wheel = trusted.fetch_agent(order.version, order.digest)
    path = state_dir / FOLDER / agent_wheel(order.version)  # not in `fetch`, which a deploy child tidies
    path.parent.mkdir(mode=0o700, exist_ok=True)
    try:
        path.write_bytes(wheel)
        return switch_version(path, order.digest, state_dir, again=order.again, was_connected=True)
    finally:
        path.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
