"""Step 7a: one device's network cable is pulled. It serves and buffers on; afterwards every reading arrives exactly once."""

import time
from datetime import UTC, datetime
from typing import Any

from covey_server.demo.serve import read_answers
from covey_server.demo.stage import Stage, StepFailedError

_OUTAGE_S = 15.0


def outage(stage: Stage) -> None:
    """Pull the cable, wait, plug it in, compare what the application asked with what the server holds."""
    if stage.cable is None:
        raise StepFailedError("no device is plugged in by a cable")
    device = stage.cut_off_device
    answered = len(read_answers(stage, device))
    since = datetime.now(UTC)
    stage.cable.cut()
    stage.narrator.line(f"{device}: network cable pulled")
    stage.wait("the server notices", lambda: presence(stage, device) == "offline", timeout_s=60)
    stage.narrator.line(f"the server sees {device} offline (last will)")
    _sit_out(stage, device)
    until = datetime.now(UTC)
    alone = read_answers(stage, device)[answered:]
    failed = sum("error" in answer for answer in alone)
    stage.held(f"{device} served through the outage: {len(alone)} pictures asked about, {failed} failed", bool(alone) and failed == 0)
    seen_before = _requests(stage, device, since=since, until=until)
    stage.cable.plug()
    stage.wait("the device is back", lambda: presence(stage, device) == "online", timeout_s=90)
    # A reading covers some seconds, so the first and the last may lie across the edges of the outage.
    stage.wait("the backlog is drained", lambda: _requests(stage, device, since=since, until=until) >= 0.6 * len(alone), timeout_s=60)
    backfilled = _requests(stage, device, since=since, until=until) - seen_before
    stage.held(f"what happened meanwhile was buffered and filed at its own time: {backfilled} inferences", backfilled > 0)
    stream = stage.call().get(f"/devices/{device}/readings/latest")["streams"][-1]
    exactly_once = stream["stored"] == stream["upto"] and not any(stream["lost"].values())
    words = f"{stream['stored']} stored of {stream['upto']} sent, {stream['duplicates']} came twice, {sum(stream['lost'].values())} lost"
    stage.held(f"every reading of {device} is there exactly once: {words}", exactly_once)
    stage.note("outage", {"device": device, "asked": len(alone), "failed": failed, "backfilled": backfilled, "stream": stream})


def presence(stage: Stage, device: str) -> str:
    """Whether the server sees a device online."""
    return str(stage.call().get(f"/devices/{device}")["presence"])


def _sit_out(stage: Stage, device: str) -> None:
    started = time.monotonic()
    with stage.narrator.progress() as progress:
        bar = progress.add_task(f"{device} on its own", total=int(_OUTAGE_S), note="serves and buffers")
        while (passed := time.monotonic() - started) < _OUTAGE_S:
            stage.troupe.check()
            progress.update(bar, completed=int(passed))
            time.sleep(0.5)
        progress.update(bar, completed=int(_OUTAGE_S))


def _requests(stage: Stage, device: str, *, since: datetime, until: datetime) -> int:
    readings: list[dict[str, Any]] = stage.call().get_all(f"/devices/{device}/readings", kind="infer", limit=200)
    return sum(int(r["values"].get("requests", 0)) for r in readings if since <= datetime.fromisoformat(r["at"]) <= until)
