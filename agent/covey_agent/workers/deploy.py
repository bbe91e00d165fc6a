"""`python -m covey_agent.workers.deploy`: verify an order, and become `fill`, which fetches the best variant and stages it.

    DeployJob -> VariantChosen, FetchProgress... -> Staged | DeployRefused (final) | DeployFailed (try again later)

It may be killed at any instant: what is fetched stays (`partial.py`), a slot is never half filled (`stage.py`), and the next run
of the same job goes on from there.

TUF and cryptography take more memory than everything else here, and are needed for a second; a download may last for hours. So it goes
on as another program in the same process, which never imports them.
"""

from datetime import UTC, datetime
from pathlib import Path

from covey_agent.core.jobs import DeployJob
from covey_agent.workers.errors import RefusedError
from covey_agent.workers.fillorder import FillOrder, told
from covey_agent.workers.lines import Lines
from covey_agent.workers.link import BulkLink
from covey_agent.workers.trust import TrustedMetadata
from covey_contract.codec import decode
from covey_contract.messages import Desired, ReleaseRef, Signed


def main() -> None:
    """Do the first half of the job on standard input, and go over to the second, or end."""
    lines = Lines.take_over()
    job = lines.read_job(DeployJob)
    lines.abandon_at_end()
    with told(lines):
        with BulkLink(job.broker) as link:
            order = verified(job, link)
        lines.become("covey_agent.workers.fill", order)


def verified(job: DeployJob, link: BulkLink) -> FillOrder:
    """What is to be fetched, if the order is true. Raises whatever `told` turns into a final event."""
    trusted = TrustedMetadata(Path(job.state_dir), link.fetch_part)
    trusted.refresh()
    ref = _verified_release(job, trusted)
    manifest = trusted.fetch_manifest(ref)
    return FillOrder(job=job, ref=ref, manifest=manifest, round_trip_s=link.round_trip_s)


def _verified_release(job: DeployJob, trusted: TrustedMetadata) -> ReleaseRef:
    signed = decode(job.order, Signed)
    order = trusted.verify_order(signed, device=job.broker.device, now=datetime.now(UTC), min_generation=job.min_generation)
    if not isinstance(order, Desired) or order.release is None:
        raise RefusedError(f"expected an order to run a release, got {type(order).__name__} without one")
    return order.release


if __name__ == "__main__":
    main()
