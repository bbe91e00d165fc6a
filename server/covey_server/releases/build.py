"""Builds: the worker's tick takes an order, quantizes in a child process, and publishes what passes the gate.

An order is a row, so it survives its worker: each tick says "I am alive" in the row, and an order whose worker has not said so
for a while is taken up again, once. A build runs in a thread of its own, one at a time a worker, because quantizing takes all
of a machine.

    builder = Builder(name="worker-1");  every tick: builder.tick_builds(parts, now);  at the end: builder.close(parts)
"""

import logging
import os
import shutil
import socket
import threading
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from pathlib import Path

from sqlmodel import Session, col, or_, select

from covey_contract.limits import MAX_REASON_CHARS
from covey_contract.release import Quality, Runtime
from covey_server.errors import CoveyServerError
from covey_server.parts import Parts
from covey_server.releases.models import ReleaseBuild, ReleaseState
from covey_server.releases.quantizer import (
    BuildStoppedError,
    Progress,
    QuantizeReport,
    QuantizeRequest,
    QuantizerError,
    QuantizerLimits,
    VariantReport,
    run_quantizer,
)
from covey_server.releases.requests import BuildRequest, request_from_row
from covey_server.releases.rules import Candidate, judge_variant
from covey_server.releases.service import fail_release, get_release, publish_release, tell

logger = logging.getLogger(__name__)
MAX_ATTEMPTS = 2
HEARTBEAT = timedelta(seconds=2)
STALE_AFTER = timedelta(seconds=20)
Quantize = Callable[[QuantizeRequest, QuantizerLimits, Callable[[Progress], None], threading.Event, Path], QuantizeReport]


def _quantize(
    request: QuantizeRequest, limits: QuantizerLimits, on_progress: Callable[[Progress], None], stopped: threading.Event, log: Path
) -> QuantizeReport:
    return run_quantizer(request, limits, on_progress=on_progress, stopped=stopped, log=log)


class Builder:
    """A worker's part in building releases."""

    def __init__(self, *, name: str = "", quantize: Quantize = _quantize) -> None:
        self.name = name or f"{socket.gethostname()}:{os.getpid()}:{os.urandom(3).hex()}"
        self._quantize = quantize
        self._thread: threading.Thread | None = None
        self._stopped = threading.Event()
        self._beat_at: datetime | None = None

    def tick_builds(self, parts: Parts, now: datetime) -> None:
        """Say that the present build lives, or take up the next one."""
        if self._thread is not None and self._thread.is_alive():
            self._beat(parts, now)
            return
        self._thread = None
        release_id = self.claim(parts, now)
        if release_id is not None:
            self._thread = threading.Thread(target=self._build_safely, args=(parts, release_id), name=f"build-{release_id}", daemon=True)
            self._thread.start()

    def close(self, parts: Parts) -> None:
        """Stop the present build and give its order back, so that the next worker takes it at once."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join(10.0)
        with parts.db.begin() as session:
            for build in session.exec(
                select(ReleaseBuild).where(ReleaseBuild.worker == self.name, col(ReleaseBuild.finished_at).is_(None))
            ):
                build.worker = ""
                build.attempts = max(0, build.attempts - 1)  # an orderly stop is no failure of the build

    def claim(self, parts: Parts, now: datetime) -> int | None:
        """Take the oldest order that nobody works on; None if there is none. Fails one that its workers died on too often."""
        nobody = or_(col(ReleaseBuild.worker) == "", col(ReleaseBuild.heartbeat_at) < now - STALE_AFTER)
        query = select(ReleaseBuild).where(col(ReleaseBuild.finished_at).is_(None), nobody).order_by(col(ReleaseBuild.created_at)).limit(1)
        with parts.db.read() as session:
            if session.exec(query).first() is None:
                return None  # most ticks end here, without taking the write lock
        with parts.db.begin() as session:
            build = session.exec(query.with_for_update(skip_locked=True)).first()
            if build is None:
                return None
            if build.attempts >= MAX_ATTEMPTS:
                build.finished_at = now
                reason = f"its worker ended {build.attempts} times while building it; look at that worker's log and memory"
                fail_release(session, get_release(session, build.release_id), reason)
                return None
            build.worker, build.heartbeat_at, build.attempts = self.name, now, build.attempts + 1
            return build.release_id

    def build(self, parts: Parts, release_id: int) -> None:
        """Build one claimed release to its end. Raises BuildStoppedError if the worker is being stopped."""
        with parts.db.read() as session:
            row = session.get_one(ReleaseBuild, release_id)
            request = request_from_row(row.request)
        folder = parts.settings.path("builds", str(release_id))
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        try:
            limits = QuantizerLimits(parts.settings.releases.build_timeout_s, parts.settings.releases.build_memory_mb * 2**20)
            order = lay_out(request, folder, parts)

            def on_progress(progress: Progress) -> None:
                self._show(parts, release_id, progress)

            report = self._quantize(order, limits, on_progress, self._stopped, folder / "quantizer.log")
            candidates = [candidate_of(variant, report, order, parts) for variant in report.variants]
            candidates += [_missing(missing.name, missing.reason) for missing in report.missing]
            self._finish(parts, release_id, request, report, candidates)
        except (QuantizerError, OSError) as exc:
            logger.warning("release %d cannot be built: %s", release_id, exc)
            self._fail(parts, release_id, str(exc).replace(f"{folder}/", "")[:MAX_REASON_CHARS])
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _build_safely(self, parts: Parts, release_id: int) -> None:
        try:
            self.build(parts, release_id)
        except BuildStoppedError:
            logger.info("build of release %d stopped; it will be taken up again", release_id)
        except CoveyServerError as exc:
            logger.warning("release %d cannot be built: %s", release_id, exc)
            self._fail(parts, release_id, str(exc)[:MAX_REASON_CHARS])
        except Exception as exc:  # top of a thread: a fault of ours must end as a failed release, not as one that builds for ever
            logger.exception("build of release %d failed", release_id)
            self._fail(parts, release_id, f"internal error: {type(exc).__name__}: {exc}"[:MAX_REASON_CHARS])

    def _beat(self, parts: Parts, now: datetime) -> None:
        if self._beat_at is not None and now - self._beat_at < HEARTBEAT:
            return
        self._beat_at = now
        with parts.db.begin() as session:
            for build in session.exec(
                select(ReleaseBuild).where(ReleaseBuild.worker == self.name, col(ReleaseBuild.finished_at).is_(None))
            ):
                build.heartbeat_at = now

    def _show(self, parts: Parts, release_id: int, progress: Progress) -> None:
        with parts.db.begin() as session:
            release = get_release(session, release_id)
            folder = parts.settings.path("builds", str(release_id))
            detail = f" ({progress.detail})".replace(f"{folder}/", "") if progress.detail else ""  # where we work is nobody's business
            release.progress = f"step {progress.done + 1} of {progress.total}: {progress.step}{detail}"[:MAX_REASON_CHARS]
            tell(session, release)

    def _finish(
        self, parts: Parts, release_id: int, request: BuildRequest, report: QuantizeReport, candidates: Sequence[Candidate]
    ) -> None:
        now = parts.clock()
        with parts.db.begin() as session:
            if not self._still_mine(session, release_id, now):
                return
            release = get_release(session, release_id)
            release.labels = release.labels or report.labels
            publish_release(
                session,
                release,
                candidates,
                golden=report.golden,
                bounds=request.options.bounds,
                custom=request.options.custom,
                blobs=parts.blobs,
                repository=parts.repository,
                now=now,
                actor="system",
            )

    def _fail(self, parts: Parts, release_id: int, reason: str) -> None:
        with parts.db.begin() as session:
            if self._still_mine(session, release_id, parts.clock()):
                fail_release(session, get_release(session, release_id), reason)

    def _still_mine(self, session: Session, release_id: int, now: datetime) -> bool:
        """Mark the order as done, unless another worker has it by now because this one was silent for too long."""
        build = session.get_one(ReleaseBuild, release_id)
        if build.worker != self.name or get_release(session, release_id).state is not ReleaseState.BUILDING:
            logger.warning("release %d was built by %s meanwhile; this result is thrown away", release_id, build.worker)
            return False
        build.finished_at = now
        return True


def lay_out(request: BuildRequest, folder: Path, parts: Parts) -> QuantizeRequest:
    """Put the order's files into a folder under the names that the quantizer expects, as links into the store."""

    def link(digest: str, name: str) -> str:
        path = folder / name
        path.symlink_to(parts.blobs.path(digest).absolute())
        return str(path)

    match request.source:
        case "onnx":
            model = link(request.model, "model.onnx")
        case "pt2":
            model = link(request.model, "model.pt2")
        case "task":
            model = f"{link(request.model, 'task.py')}:build_model"
    drop = request.options.max_accuracy_drop
    return QuantizeRequest(
        model=model,
        weights=link(request.weights, "weights.safetensors") if request.weights else "",
        calibration=link(request.calibration, "calibration.npz"),
        held_out=link(request.held_out, "held_out.npz") if request.held_out else "",
        out=str(folder / "out"),
        labels=request.labels,
        variants=request.options.variants,
        tflite=request.options.tflite,
        max_accuracy_drop=parts.settings.releases.max_accuracy_drop if drop is None else drop,
    )


def candidate_of(variant: VariantReport, report: QuantizeReport, order: QuantizeRequest, parts: Parts) -> Candidate:
    """A measured variant with the gate's verdict; its file goes into the store. Raises QuantizerError for a file that changed."""
    if variant.accepted:
        digest, length = parts.blobs.put_file(Path(order.out) / Path(variant.file).name)
        if (digest, length) != (variant.sha256, variant.length):
            raise QuantizerError(f"the file of variant {variant.name} is not the one that was measured")
    return judge_variant(
        Candidate(
            name=variant.name,
            precision=variant.precision,
            runtime=variant.runtime,
            min_runtime_version=variant.min_runtime_version,
            artifact=variant.sha256 if variant.accepted else "",
            length=variant.length,
            input=variant.input,
            output=variant.output,
            golden_tolerance=variant.golden_tolerance,
            quality=_quality(variant, report.held_out_samples),
            memory=variant.memory,
            size_ratio=variant.size_ratio,
            accepted=variant.accepted,
            reason=variant.reason if not variant.accepted else variant.recipe,
        ),
        max_accuracy_drop=order.max_accuracy_drop,
    )


def _quality(variant: VariantReport, samples: int) -> Quality | None:
    numbers = (variant.accuracy, variant.accuracy_drop, variant.relative_error, variant.latency_ms)
    if any(number is None for number in numbers):
        if variant.accepted:
            raise QuantizerError(f"variant {variant.name} was accepted without a measurement")
        return None
    accuracy, drop, error, latency = (number or 0.0 for number in numbers)
    return Quality(accuracy=accuracy, accuracy_drop=drop, relative_error=error, latency_ms=latency, samples=samples)


def _missing(name: str, reason: str) -> Candidate:
    runtime, _, precision = name.partition("-")
    return Candidate(
        name=name,
        precision=precision,
        runtime=Runtime.LITERT if runtime == "tflite" else Runtime.ONNXRUNTIME,
        min_runtime_version="",
        artifact="",
        length=0,
        input=None,
        output=None,
        golden_tolerance=0.0,
        quality=None,
        accepted=False,
        reason=reason,
    )
