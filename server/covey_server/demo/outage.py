"""Step 7a: one device's network cable is pulled. It serves and buffers on; afterwards every reading arrives exactly once."""

import time

from covey_server.demo.serve import read_answers
from covey_server.demo.stage import Stage

_OUTAGE_S = 15.0


def outage(stage: Stage) -> None:
    """Pull the cable, wait, plug it in, compare what the device made with what the server holds."""
    device = stage.cut_off_device
    cable = stage.cable
    if cable is None:
        return
    answered = sum(1 for _ in read_answers(stage, device))
    cable.cut()
    stage.narrator.line(f"{device}: network cable pulled")
    stage.wait("the server notices", lambda: stage.call().get(f"/devices/{device}")["presence"] == "offline", timeout_s=60)
    stage.narrator.line(f"the server sees {device} offline (last will)")
    started = time.monotonic()
    with stage.narrator.progress() as progress:
        bar = progress.add_task(f"{device} alone", total=int(_OUTAGE_S), note="serves and buffers")
        while time.monotonic() - started < _OUTAGE_S:
            stage.troupe.check()
            progress.update(bar, completed=int(time.monotonic() - started))
            time.sleep(0.5)
    waiting = stage.agent_json(device, "status")["buffer"]["waiting"]
    alone = sum(1 for _ in read_answers(stage, device)) - answered
    failed = sum("error" in answer for answer in list(read_answers(stage, device))[answered:])
    stage.narrator.line(f"alone it answered {alone} pictures ({failed} failed) and holds {waiting} readings back")
    stage.held(f"{device} served through the outage", alone > 0 and failed == 0)
    stage.held(f"{device} buffered its readings", waiting > 0)
    cable.plug()
    stage.wait("the device is back", lambda: stage.call().get(f"/devices/{device}")["presence"] == "online", timeout_s=90)
    status = stage.agent_json(device, "status")["buffer"]
    upto, epoch = status["next_sequence"] - 1, status["epoch"]

    def caught_up() -> bool:
        return any(stream["epoch"] == epoch and stream["upto"] >= upto for stream in streams(stage, device))

    stage.wait("the backlog is drained", caught_up, timeout_s=60)
    stream = next(stream for stream in streams(stage, device) if stream["epoch"] == epoch)
    exactly_once = stream["stored"] == stream["upto"] + 1 and not any(stream["lost"].values())
    stage.held(f"every reading of {device} is stored exactly once: {stream['stored']} of {stream['upto'] + 1}, {stream['duplicates']} came twice", exactly_once)
    stage.note("outage", {"device": device, "answered_alone": alone, "failed": failed, "buffered": waiting, "stream": stream})


def streams(stage: Stage, device: str) -> list[dict[str, object]]:
    """What the server knows of a device's streams of readings."""
    found: list[dict[str, object]] = stage.call().get(f"/devices/{device}/readings/streams")["items"]
    return found
