"""Step 6: an application on each device asks its own agent about real pictures; what it measures reaches the server."""

import json
from pathlib import Path
from typing import Any

from covey_server.demo.actors import program
from covey_server.demo.stage import Stage

RATE = 4  # pictures a second and device
_ENOUGH = 40  # pictures a device before the story goes on


def answers_of(stage: Stage, device: str) -> Path:
    """Where a device's application writes its answers."""
    return stage.work_dir / "answers" / f"{device}.jsonl"


def read_answers(stage: Stage, device: str) -> list[dict[str, Any]]:
    """Every answer so far; a line that is being written is left for the next time."""
    path = answers_of(stage, device)
    lines = path.read_text("utf-8").splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def start_applications(stage: Stage) -> None:
    """Start one application a device. It goes on until the end of the demo."""
    (stage.work_dir / "answers").mkdir(exist_ok=True)
    for device in stage.devices:
        argv = [
            program("python"),
            str(stage.example("camera", "app.py")),
            *("--socket", str(stage.state_dir(device) / "run" / "infer.sock")),
            *("--images", str(stage.work_dir / "data" / "held-out.npz")),
            *("--rate", str(RATE)),
            *("--log", str(answers_of(stage, device))),
        ]
        stage.troupe.start(f"app-{device}", argv)


def serve(stage: Stage) -> None:
    """Applications ask; the fleet sees latency, confidence, class mix and errors."""
    start_applications(stage)
    with stage.narrator.progress() as progress:
        bars = {device: progress.add_task(f"{device} answers", total=_ENOUGH, note="") for device in stage.devices}

        def asked_enough() -> bool:
            counts = {device: len(read_answers(stage, device)) for device in stage.devices}
            for device, count in counts.items():
                progress.update(bars[device], completed=min(count, _ENOUGH))
            return min(counts.values()) >= _ENOUGH

        stage.wait("applications get answers", asked_enough, timeout_s=60)
    measured = {}
    for device in stage.devices:
        answers = read_answers(stage, device)
        good = [answer for answer in answers if "error" not in answer]
        right = sum(answer["label"] == answer["truth"] for answer in good)
        milliseconds = sorted(answer["ms"] for answer in good)
        measured[device] = {
            "requests": len(answers),
            "failed": len(answers) - len(good),
            "accuracy": round(right / max(1, len(good)), 3),
            "p50_ms": milliseconds[len(milliseconds) // 2] if milliseconds else None,
        }
        stage.narrator.line(
            f"{device}: {len(answers)} pictures, {measured[device]['accuracy']:.0%} right, p50 {measured[device]['p50_ms']} ms"
        )
    stage.held("every request was answered", all(entry["failed"] == 0 for entry in measured.values()))

    def arrived() -> bool:
        return all({"infer", "system"} <= kinds_stored(stage, device) for device in stage.devices)

    stage.wait("readings arrive at the server", arrived, timeout_s=60)
    stage.narrator.good("latency, throughput, confidence, class mix and system health arrive, acknowledged end to end")
    stage.note("inference", measured)


def kinds_stored(stage: Stage, device: str) -> set[str]:
    """The kinds of readings that the server holds of a device."""
    return {latest["kind"] for latest in stage.call().get(f"/devices/{device}/readings/latest")["latest"]}
