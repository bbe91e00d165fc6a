"""Steps 4 and 5: a release out of the run, and its rollout, canary first."""

import time
from typing import Any

import numpy as np
from rich.progress import Progress, TaskID
from rich.table import Table

from covey_server.demo.stage import Stage, StepFailedError

PROBATION_S = 6.0
_DEADLINE_S = 120.0
_OVER = {"completed", "halted", "cancelled"}
_DONE = {"succeeded", "failed", "unresponsive", "skipped"}


def release(stage: Stage) -> None:
    """Export, quantize, measure, refuse what is not good enough, sign, store."""
    data = stage.work_dir / "data"
    order = {
        "run": stage.run,
        "calibration": str(data / "calibration.npz"),
        "held_out": str(data / "held-out.npz"),
        "note": "made by the demo",
    }
    built = _build(stage, order)
    stage.release = built["id"]
    names = {variant["name"] for variant in built["variants"] if variant["accepted"]}
    stage.held(
        "int8 for ONNX Runtime and for LiteRT, with float fall-backs",
        {"onnx-int8", "tflite-int8", "onnx-float32", "tflite-float32"} <= names,
    )
    stage.narrator.good(f"signed (TUF) and stored by digest: manifest {built['manifest_digest'][:16]}…")
    stage.note("release", built)
    _refuse_a_bad_variant(stage)


def _refuse_a_bad_variant(stage: Stage) -> None:
    """The same model, calibrated with underexposed pictures by mistake: int8 clips what it never saw, and is refused."""
    data = stage.work_dir / "data"
    with np.load(data / "calibration.npz") as samples:
        np.savez(data / "underexposed.npz", x=samples["x"] * np.float32(0.1), y=samples["y"])
    order = {
        "run": stage.run,
        "calibration": str(data / "underexposed.npz"),
        "held_out": str(data / "held-out.npz"),
        "variants": ["onnx-float32", "onnx-int8"],
        "tflite": False,
        "note": "calibrated with underexposed pictures",
    }
    stage.narrator.line("the same again, calibrated with underexposed pictures by mistake:")
    built = _build(stage, order)
    refused = [variant for variant in built["variants"] if not variant["accepted"]]
    stage.held("the variant that lost more than its budget was refused", [variant["name"] for variant in refused] == ["onnx-int8"])
    stage.note("refused_variants", refused)


def _build(stage: Stage, order: dict[str, Any]) -> dict[str, Any]:
    release_id = stage.call().post("/releases", order)["id"]
    with stage.narrator.progress() as progress:
        bar = progress.add_task("building", total=None, note="")

        def is_built() -> bool:
            found = stage.call().get(f"/releases/{release_id}")
            progress.update(bar, note=found["progress"])
            return bool(found["state"] != "building")

        stage.wait("the release is built", is_built, timeout_s=300)
        progress.update(bar, total=1, completed=1, note="")
    built: dict[str, Any] = stage.call().get(f"/releases/{release_id}")
    if built["state"] != "published":
        raise StepFailedError(f"the release {built['state']}: {built['reason']}")
    stage.narrator.table(_variants(built))
    return built


def roll_out(stage: Stage) -> None:
    """Canary first, then the rest; success is what devices report as running after probation."""
    rollout = start_rollout(stage, stage.release, name="digits")
    ended = watch_rollout(stage, rollout)
    parts = parts_of(stage, rollout)
    for part in parts:
        stage.narrator.line(f"{part['device_id']}: {part['variant']}, because {part['variant_reason']}")
    stage.held(
        "every device serves the release after its probation",
        ended["state"] == "completed" and all(p["state"] == "succeeded" for p in parts),
    )
    stage.note("rollout", {"id": rollout, "state": ended["state"], "devices": parts})


def start_rollout(stage: Stage, release_id: int, *, name: str) -> str:
    """A rollout to all devices, the first one as canary; returns its id."""
    order = {
        "release": release_id,
        "name": name,
        "selector": {"devices": stage.devices},
        "phases": [{"name": "canary", "devices": [stage.devices[0]]}, {"name": "rest", "percent": 100}],
        "probation_s": PROBATION_S,
        "deadline_s": _DEADLINE_S,
        "start": True,
    }
    if len(stage.devices) == 1:
        order["phases"] = [{"name": "canary", "percent": 100}]
    return str(stage.call().post("/rollouts", order)["id"])


def watch_rollout(stage: Stage, rollout: str, *, timeout_s: float = 240.0) -> dict[str, Any]:
    """Show a rollout until it is over and return how it ended."""
    with stage.narrator.progress() as progress:
        bars: dict[str, TaskID] = {}

        def is_over() -> dict[str, Any] | None:
            for part in parts_of(stage, rollout):
                _show(progress, bars, part)
            found: dict[str, Any] = stage.call().get(f"/rollouts/{rollout}")
            return found if found["state"] in _OVER else None

        return stage.wait("the rollout ends", is_over, timeout_s=timeout_s)


def parts_of(stage: Stage, rollout: str) -> list[dict[str, Any]]:
    """Each device's part in a rollout."""
    return stage.call().get_all(f"/rollouts/{rollout}/devices")


def wait_settled(stage: Stage, rollout: str) -> None:
    """Wait until no device is at work any more: reports may arrive a moment after the rollout was halted."""

    def settled() -> bool:
        return all(part["state"] in _DONE for part in parts_of(stage, rollout))

    stage.wait("devices have settled", settled, timeout_s=60)
    time.sleep(0.5)


def _show(progress: Progress, bars: dict[str, TaskID], part: dict[str, Any]) -> None:
    device = part["device_id"]
    total = part["chunks_total"] or 1
    done = part["chunks_done"] if part["chunks_total"] else int(part["state"] in {"succeeded", "failed"})
    note = part["deployment_state"] or part["state"]
    if device not in bars:
        bars[device] = progress.add_task(device, total=total, note=note)
    progress.update(bars[device], total=total, completed=done, note=note)


def _variants(built: dict[str, Any]) -> Table:
    table = Table(title=f"release {built['model']} {built['version']}", title_justify="left", box=None, header_style="bold")
    for column in ("  variant", "bytes", "smaller", "accuracy", "lost", "latency", "in the release"):
        table.add_column(column, justify="left" if column in {"  variant", "in the release"} else "right")
    for v in built["variants"]:
        table.add_row(
            f"  {v['name']}",
            f"{v['length']:,}",
            f"{v['size_ratio']:.2f} x" if v["size_ratio"] else "",
            _percent(v["accuracy"]),
            _percent(v["accuracy_drop"]),
            f"{v['latency_ms']:.3f} ms" if v["latency_ms"] else "",
            "yes" if v["accepted"] else f"refused: {v['reason']}",
        )
    return table


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.1%}"
