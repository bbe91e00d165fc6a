"""`python -m covey_agent.workers.fill`: fetch the best variant of a verified release and stage it.

FillOrder -> VariantChosen, FetchProgress... -> Staged | DeployRefused (final) | DeployFailed (try again later)

Nobody but `deploy` starts it, in its own place; it must import neither TUF nor cryptography.
"""

import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import closing
from pathlib import Path

from covey_agent.core.jobs import (
    BrokerAddress,
    DeployJob,
    MeteredPolicy,
    Staged,
    VariantChosen,
    VariantsMeasured,
)
from covey_agent.workers.choose import Choice, choose_variant, fitting_variants
from covey_agent.workers.download import Download
from covey_agent.workers.errors import RefusedError, UntrustedError
from covey_agent.workers.fetch import Fetch, FetchPlace
from covey_agent.workers.fillorder import FillOrder, told
from covey_agent.workers.lines import Lines, take_order
from covey_agent.workers.link import BulkLink
from covey_agent.workers.offers import DeltaOffers
from covey_agent.workers.pace import ChunkWindow
from covey_agent.workers.partial import forget_other_artifacts
from covey_agent.workers.stage import SlotFile, clear_leftovers, holds, stage_slot
from covey_agent.workers.suppliers import Suppliers
from covey_agent.workers.trial import is_worth_it, try_out, unmeasured
from covey_contract.codec import decode_release
from covey_contract.errors import ContractError
from covey_contract.limits import MAX_REASON_CHARS
from covey_contract.messages import DownloadOffer, ReleaseRef
from covey_contract.release import Release, Variant


def main() -> None:
    """Do what was left to do and end."""
    lines = Lines.take_over()
    order = take_order(FillOrder)
    lines.abandon_at_end()
    with told(lines), BulkLink(order.job.broker) as link:
        lines.emit(fill(order, link, lines))


def fill(order: FillOrder, link: BulkLink, lines: Lines) -> Staged:
    """Choose a variant and fill the free slot with it. Raises whatever `told` turns into a final event."""
    job, ref, manifest = order.job, order.ref, order.manifest
    release = _read_manifest(manifest, ref)
    fetch_dir = Path(job.state_dir) / "fetch"
    with closing(Suppliers(link, link.fetch_part, lambda offer: _download(offer, job.broker))) as suppliers:
        candidates = [variant for variant in fitting_variants(release, job.capabilities) if variant.artifact not in job.quarantine]
        fetch = _new_fetch(order, fetch_dir, suppliers, link, lines, keep={variant.artifact for variant in candidates})
        choice = choose_variant(release, job.capabilities, _measure(job, ref, candidates, fetch, lines))
        refuse_quarantined(choice, ref, quarantine=job.quarantine)
        variant = choice.variant
        lines.emit(VariantChosen(variant=variant.name, artifact=variant.artifact, reason=choice.reason, manifest=ref.manifest))
        slot = SlotFile(ref.model, ref.version, ref.manifest, variant.name, variant.artifact, choice.reason, choice.provider)
        slot_dir, how = Path(job.slot_dir), "already in the slot"
        if not holds(slot_dir, slot, variant=variant):
            data = fetch.obtain(variant)
            link.leave()
            stage_slot(slot_dir, manifest, slot=slot, variant=variant, data=data)
            how = fetch.how + (f", by {' and '.join(sorted(suppliers.used))}" if suppliers.used else "")
    # Here and not only after staging: an earlier run of this job may have been killed just after it.
    clear_leftovers(slot_dir)
    forget_other_artifacts(fetch_dir, keep=())
    return Staged(
        slot_dir=job.slot_dir, variant=variant.name, artifact=variant.artifact, manifest=ref.manifest, fetched=how[:MAX_REASON_CHARS]
    )


def _measure(job: DeployJob, ref: ReleaseRef, candidates: Sequence[Variant], fetch: Fetch, lines: Lines) -> Mapping[str, float]:
    """What is known of the candidates' speed here, after a trial of those that were never timed if that costs little."""
    missing = unmeasured(candidates, job.capabilities, job.measured)
    if job.link.policy is not MeteredPolicy.ALLOW or not is_worth_it(candidates, missing, most_bytes=job.trial_bytes):
        return job.measured
    measured = try_out(missing, job.capabilities, obtain=fetch.obtain, measured=job.measured)
    lines.emit(VariantsMeasured(model=ref.model, latencies=measured))
    return measured


def _new_fetch(order: FillOrder, fetch_dir: Path, suppliers: Suppliers, link: BulkLink, lines: Lines, *, keep: Collection[str]) -> Fetch:
    job = order.job
    return Fetch(
        suppliers,
        FetchPlace(fetch_dir, Path(job.active_artifact) if job.active_artifact else None, job.reserve_bytes),
        tell=lines.emit,
        clock=time.monotonic,
        offers=DeltaOffers(link.fetch_part),
        rules=job.link,
        window=ChunkWindow.after(order.round_trip_s),
        keep=keep,
    )


def _download(offer: DownloadOffer, broker: BrokerAddress) -> Download:
    return Download(offer.url, ca_file=broker.ca_file if offer.fleet_ca else None)


def refuse_quarantined(choice: Choice, ref: ReleaseRef, *, quarantine: list[str]) -> None:
    """Raise RefusedError for what failed here before. The next best variant is not tried instead: an operator decides."""
    if ref.manifest in quarantine:
        raise RefusedError(f"{ref.model} {ref.version} is in quarantine on this device", artifact=ref.manifest)
    if choice.variant.artifact in quarantine:
        raise RefusedError(
            f"{choice.variant.name} of {ref.model} {ref.version} is in quarantine on this device", artifact=choice.variant.artifact
        )


def _read_manifest(manifest: bytes, ref: ReleaseRef) -> Release:
    try:
        release = decode_release(manifest)
    except ContractError as exc:
        raise RefusedError(f"the manifest is signed but this agent cannot read it: {exc}", artifact=ref.manifest) from exc
    if (release.model, release.version) != (ref.model, ref.version):
        raise UntrustedError(f"the manifest is of {release.model} {release.version}, the order names {ref.model} {ref.version}")
    return release


if __name__ == "__main__":
    main()
