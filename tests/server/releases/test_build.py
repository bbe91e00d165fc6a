"""Builds: orders as rows, workers that die, and quantizers (real child processes) that misbehave in every way."""

import sys
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from tests.server.releases.bench import GOLDEN, TENSOR, Bench, make_bench

from covey_contract.codec import digest_of
from covey_contract.release import Lineage, Runtime
from covey_server.releases.build import STALE_AFTER, Builder
from covey_server.releases.imports import create_release_from_file, store_data
from covey_server.releases.models import ReleaseBuild, ReleaseState
from covey_server.releases.quantizer import (
    BuildStoppedError,
    Finished,
    Missing,
    Progress,
    QuantizeReport,
    QuantizeRequest,
    QuantizerError,
    QuantizerLimits,
    VariantReport,
    run_quantizer,
)
from covey_server.releases.requests import BuildOptions
from covey_server.releases.service import get_release, id_of, list_variants

LIMITS = QuantizerLimits(timeout_s=20.0, memory=2**30)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return make_bench(tmp_path)


def variant(name: str, content: bytes, *, drop: float = 0.0) -> VariantReport:
    return VariantReport(
        name=name,
        precision="int8",
        runtime=Runtime.ONNXRUNTIME,
        min_runtime_version="1.20",
        file=f"{name}.onnx",
        sha256=digest_of(content),
        length=len(content),
        input=TENSOR,
        output=TENSOR,
        accuracy=0.9 - drop,
        accuracy_drop=drop,
        relative_error=0.01,
        latency_ms=0.2,
        golden_tolerance=0.05,
        accepted=True,
        size_ratio=3.7,
        recipe="static int8",
    )


class FakeQuantizer:
    """Writes the files of its report, as the real one does; what it was asked is kept."""

    def __init__(self, variants: dict[str, tuple[bytes, float]], *, missing: list[Missing] | None = None) -> None:
        self.variants = variants
        self.missing = missing or []
        self.asked: list[QuantizeRequest] = []
        self.tamper = False

    def __call__(
        self,
        request: QuantizeRequest,
        limits: QuantizerLimits,
        on_progress: Callable[[Progress], None],
        stopped: threading.Event,
        log: Path,
    ) -> QuantizeReport:
        del limits, stopped, log
        self.asked.append(request)
        assert Path(request.model).read_bytes() == b"an onnx file"
        on_progress(Progress("quantize", "onnx-int8", 2, 6))
        out = Path(request.out)
        out.mkdir()
        for name, (content, _) in self.variants.items():
            (out / f"{name}.onnx").write_bytes(content + (b"!" if self.tamper else b""))
        reports = [variant(name, content, drop=drop) for name, (content, drop) in self.variants.items()]
        return QuantizeReport(variants=reports, golden=GOLDEN, labels=["0", "1"], missing=self.missing, held_out_samples=100)


def order(bench: Bench, *, options: BuildOptions | None = None) -> int:
    path = bench.parts.settings.path("data.npz")
    path.write_bytes(b"PK\x03\x04rest")
    calibration = store_data(path, bench.parts.blobs)
    with bench.parts.db.begin() as session:
        release = create_release_from_file(
            session,
            "digits",
            kind="onnx",
            file=bench.parts.blobs.put(b"an onnx file"),
            calibration=calibration,
            labels=[],
            options=options or BuildOptions(),
            created_by="token:test",
        )
        return id_of(release)


def state(bench: Bench, release_id: int) -> tuple[ReleaseState, str]:
    with bench.parts.db.read() as session:
        release = get_release(session, release_id)
        return release.state, release.reason


def build(bench: Bench, release_id: int, quantize: FakeQuantizer) -> None:
    builder = Builder(name="w1", quantize=quantize)
    assert builder.claim(bench.parts, bench.clock()) == release_id
    builder.build(bench.parts, release_id)


def test_a_build_publishes_what_passes_and_keeps_what_does_not_with_the_reason(bench: Bench) -> None:
    release_id = order(bench)
    quantizer = FakeQuantizer(
        {"onnx-int8": (b"small", 0.0), "onnx-float16": (b"lossy", 0.2)}, missing=[Missing("tflite-int8", "the converter crashed")]
    )
    build(bench, release_id, quantizer)
    assert state(bench, release_id) == (ReleaseState.PUBLISHED, "")
    with bench.parts.db.read() as session:
        rows = {row.name: row for row in list_variants(session, [release_id])[release_id]}
        assert get_release(session, release_id).labels == ["0", "1"]
    assert {name: (row.accepted, row.reason) for name, row in rows.items()} == {
        "onnx-int8": (True, "static int8"),
        "onnx-float16": (False, "accuracy drops by 0.2000, the budget is 0.01"),
        "tflite-int8": (False, "the converter crashed"),
    }
    assert (rows["onnx-int8"].size_ratio, rows["tflite-int8"].runtime) == (3.7, "litert")
    assert "releases/digits/1.json" in bench.repository.targets
    assert not bench.parts.settings.path("builds", str(release_id)).exists()


def test_the_orders_options_reach_the_quantizer(bench: Bench) -> None:
    quantizer = FakeQuantizer({"onnx-int8": (b"small", 0.0)})
    build(bench, order(bench, options=BuildOptions(variants=["onnx-int8"], tflite=False, max_accuracy_drop=0.3)), quantizer)
    (asked,) = quantizer.asked
    assert (asked.variants, asked.tflite, asked.max_accuracy_drop, asked.weights, asked.held_out) == (["onnx-int8"], False, 0.3, "", "")
    assert asked.model.endswith("/model.onnx")


def test_a_file_that_is_not_the_one_measured_fails_the_release(bench: Bench) -> None:
    release_id = order(bench)
    quantizer = FakeQuantizer({"onnx-int8": (b"small", 0.0)})
    quantizer.tamper = True
    build(bench, release_id, quantizer)
    assert state(bench, release_id) == (ReleaseState.FAILED, "the file of variant onnx-int8 is not the one that was measured")


def test_a_tick_builds_in_a_thread_and_says_that_it_lives(bench: Bench) -> None:
    release_id = order(bench)
    entered, leave = threading.Event(), threading.Event()
    quantizer = FakeQuantizer({"onnx-int8": (b"small", 0.0)})

    def slow(
        request: QuantizeRequest, limits: QuantizerLimits, on_progress: Callable[[Progress], None], stopped: threading.Event, log: Path
    ) -> QuantizeReport:
        entered.set()
        assert leave.wait(10)
        return quantizer(request, limits, on_progress, stopped, log)

    builder = Builder(name="w1", quantize=slow)
    builder.tick_builds(bench.parts, bench.clock())
    assert entered.wait(10)
    later = bench.clock.advance(5)
    builder.tick_builds(bench.parts, later)
    with bench.parts.db.read() as session:
        assert session.get_one(ReleaseBuild, release_id).heartbeat_at == later
    leave.set()
    builder.close(bench.parts)
    assert state(bench, release_id)[0] is ReleaseState.PUBLISHED


def test_an_order_of_a_dead_worker_is_taken_up_once_and_then_failed(bench: Bench) -> None:
    release_id = order(bench)
    assert Builder(name="w1").claim(bench.parts, bench.clock()) == release_id
    assert Builder(name="w2").claim(bench.parts, bench.clock()) is None  # w1 may still live
    bench.clock.now += STALE_AFTER * 2
    assert Builder(name="w2").claim(bench.parts, bench.clock()) == release_id
    bench.clock.now += STALE_AFTER * 2
    assert Builder(name="w3").claim(bench.parts, bench.clock()) is None
    assert state(bench, release_id)[0] is ReleaseState.FAILED
    assert "its worker ended 2 times" in state(bench, release_id)[1]


def test_a_result_that_comes_after_another_worker_took_over_is_thrown_away(bench: Bench) -> None:
    release_id = order(bench)
    first = Builder(name="w1", quantize=FakeQuantizer({"onnx-int8": (b"small", 0.0)}))
    first.claim(bench.parts, bench.clock())
    bench.clock.now += STALE_AFTER * 2
    assert Builder(name="w2").claim(bench.parts, bench.clock()) == release_id
    first.build(bench.parts, release_id)
    assert state(bench, release_id)[0] is ReleaseState.BUILDING
    assert bench.repository.targets == {}


def test_an_orderly_stop_gives_the_order_back_without_counting_an_attempt(bench: Bench) -> None:
    release_id = order(bench)
    builder = Builder(name="w1")
    builder.claim(bench.parts, bench.clock())
    builder.close(bench.parts)
    with bench.parts.db.read() as session:
        row = session.get_one(ReleaseBuild, release_id)
        assert (row.worker, row.attempts) == ("", 0)
    assert Builder(name="w2").claim(bench.parts, bench.clock()) == release_id


def test_a_fault_of_ours_ends_as_a_failed_release(bench: Bench) -> None:
    release_id = order(bench)

    def broken(*_: object) -> QuantizeReport:
        raise ZeroDivisionError("oops")

    builder = Builder(name="w1", quantize=broken)
    builder.tick_builds(bench.parts, bench.clock())
    builder.close(bench.parts)
    assert state(bench, release_id) == (ReleaseState.FAILED, "internal error: ZeroDivisionError: oops")


# -- the child process -------------------------------------------------------------------------------------------------


def converse(tmp_path: Path, program: str, *, limits: QuantizerLimits = LIMITS, stopped: bool = False) -> tuple[list[str], QuantizeReport]:
    """Run a small program in the quantizer's place; -S and -E because it needs none of our packages."""
    told: list[str] = []
    stop = threading.Event()
    if stopped:
        stop.set()
    report = run_quantizer(
        QuantizeRequest(model="m.onnx", calibration="c.npz", out="out", max_accuracy_drop=0.01),
        limits,
        on_progress=lambda progress: told.append(progress.step),
        stopped=stop,
        log=tmp_path / "log",
        command=(sys.executable, "-SE", "-c", program),
    )
    return told, report


def test_progress_and_the_report_come_through(tmp_path: Path) -> None:
    final = msgspec.json.encode(Finished(QuantizeReport(variants=[variant("onnx-int8", b"x")], golden=GOLDEN))).decode()
    program = (
        "import json, sys; asked = json.loads(sys.stdin.readline()); assert asked['model'] == 'm.onnx'; "
        'print(\'{"type":"progress","step":"load","detail":"","done":0,"total":6,"new_field":1}\', flush=True); '
        f"print({final!r}, flush=True)"
    )
    told, report = converse(tmp_path, program)
    assert told == ["load"]
    assert report.variants[0].name == "onnx-int8"


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ('print(\'{"type":"failed","error":"X","message":"not an ONNX file","bad_input":true}\')', "^not an ONNX file$"),
        ("import sys; sys.exit('ModuleNotFoundError: no covey_quantize')", "exit code 1 and no result: ModuleNotFoundError"),
        ("import os; os.kill(os.getpid(), 9)", "ended by SIGKILL"),
        ("import os; os.abort()", "ended by SIGABRT"),
        ("print('hello')", "no line of its protocol"),
        ("print('[' * 100000)", "no line of its protocol"),
        ("pass", "exit code 0 and no result: no message"),
    ],
)
def test_a_quantizer_that_misbehaves_is_told_as_the_reason(tmp_path: Path, program: str, reason: str) -> None:
    with pytest.raises(QuantizerError, match=reason):
        converse(tmp_path, program)


def test_a_quantizer_that_hangs_is_killed(tmp_path: Path) -> None:
    with pytest.raises(QuantizerError, match=r"took longer than 0\.1 s"):
        converse(tmp_path, "import time; time.sleep(60)", limits=QuantizerLimits(0.1, 2**30))


def test_a_quantizer_that_eats_memory_is_killed(tmp_path: Path) -> None:
    with pytest.raises(QuantizerError, match="MB are allowed"):
        converse(tmp_path, "x = bytearray(200 * 2**20); import time; time.sleep(60)", limits=QuantizerLimits(20.0, 64 * 2**20))


def test_a_stopping_worker_stops_its_quantizer(tmp_path: Path) -> None:
    with pytest.raises(BuildStoppedError):
        converse(tmp_path, "import time; time.sleep(60)", stopped=True)


def test_lineage_survives_the_order(bench: Bench) -> None:
    release_id = order(bench)
    with bench.parts.db.read() as session:
        assert msgspec.convert(get_release(session, release_id).lineage, Lineage).source == "import"
