"""`python -m covey_agent.workers.verify`: is this order really the fleet's? For orders that the agent itself acts on.

VerifyJob -> Verified | Rejected (final) | VerifyFailed (try again later)
"""

from datetime import UTC, datetime
from pathlib import Path

from covey_agent.core.jobs import Rejected, Verified, VerifyFailed, VerifyJob
from covey_agent.workers.errors import NetworkError, StorageError, UntrustedError
from covey_agent.workers.lines import Lines
from covey_agent.workers.link import BulkLink
from covey_agent.workers.trust import TrustedMetadata
from covey_contract.codec import decode
from covey_contract.errors import ContractError
from covey_contract.messages import Signed


def main() -> None:
    """Do the job on standard input and end."""
    lines = Lines.take_over()
    job = lines.read_job(VerifyJob)
    try:
        with BulkLink(job.broker, role="verify") as link:
            trusted = TrustedMetadata(Path(job.state_dir), link.fetch_part)
            trusted.refresh()
            trusted.verify_order(decode(job.order, Signed), device=job.broker.device, now=datetime.now(UTC))
    except (UntrustedError, ContractError) as exc:
        lines.emit(Rejected(reason=str(exc)))
    except (NetworkError, StorageError) as exc:
        lines.emit(VerifyFailed(reason=str(exc)))
    else:
        lines.emit(Verified())


if __name__ == "__main__":
    main()
