"""Step 7b: releases that pass signing and then crash or lie. Devices go back by themselves; the server halts at the canary."""

import json
from typing import Any

from covey_server.demo.actors import program
from covey_server.demo.serve import read_answers
from covey_server.demo.ship import parts_of, start_rollout, wait_settled, watch_rollout
from covey_server.demo.stage import Stage

# behaviour -> what the audience is told
POISONS = {
    "crash": "passes signing and its golden inputs, then kills the runtime's process on a live picture",
    "constant": "passes its golden inputs, which were recorded from itself, and answers always the same",
    "wrong": "has its classes mixed up, so that it contradicts the golden outputs that it was signed with",
}


def poison(stage: Stage) -> None:
    """Ship each poison; the fleet must survive all of them."""
    outcomes = {}
    for behaviour, words in POISONS.items():
        stage.narrator.line(f"[bold]poison: {behaviour}[/bold] - {words}")
        outcomes[behaviour] = _ship_one(stage, behaviour)
    stage.note("poison", outcomes)


def _ship_one(stage: Stage, behaviour: str) -> dict[str, Any]:
    good = {device: _served(stage, device) for device in stage.devices}
    asked = {device: len(read_answers(stage, device)) for device in stage.devices}
    rollout = start_rollout(stage, _import_poison(stage, behaviour), name=f"poison-{behaviour}")
    ended = watch_rollout(stage, rollout)
    wait_settled(stage, rollout)
    parts = parts_of(stage, rollout)
    touched = [part for part in parts if part["state"] != "skipped"]
    for part in touched:
        took = "" if part["rollback_ms"] is None else f"; {part['rollback_ms']:.0f} ms after the evidence the old model serves"
        stage.narrator.line(f"{part['device_id']}: {part['deployment_state']}: {part['reason']}{took}")
    stage.held(f"the server halted at the canary: {ended['reason']}", ended["state"] == "halted" and len(touched) == 1)
    back = all(_served(stage, device) == good[device] for device in stage.devices)
    stage.held("every device serves the model that it served before", back)
    canary = touched[0]["device_id"]
    quarantine = stage.call().get(f"/devices/{canary}")["quarantine"]
    stage.held(f"{canary} has the digest in quarantine", any(entry["reason"] for entry in quarantine) and bool(quarantine))
    answers = {device: read_answers(stage, device)[asked[device] :] for device in stage.devices}
    failed = sum("error" in answer for given in answers.values() for answer in given)
    total = sum(len(given) for given in answers.values())
    stage.held(f"applications were served throughout: {total} requests, {failed} failed", total > 0 and failed == 0)
    return {
        "rollout": rollout,
        "state": ended["state"],
        "reason": ended["reason"],
        "devices": parts,
        "quarantine": quarantine,
        "requests": total,
        "failed": failed,
        "rollback_ms": [part["rollback_ms"] for part in touched],
    }


def _served(stage: Stage, device: str) -> tuple[str, int, str]:
    found = stage.call().get(f"/devices/{device}")
    return found["serving_model"], found["serving_version"], found["serving_variant"]


def _import_poison(stage: Stage, behaviour: str) -> int:
    folder = stage.work_dir / "poison" / behaviour
    argv = [
        program("python"),
        str(stage.example("poison", "pack.py")),
        *("--behaviour", behaviour),
        *("--data", str(stage.work_dir / "data" / "calibration.npz")),
        *("--out", str(folder)),
    ]
    stage.troupe.call("packing a poison", argv, timeout_s=60)
    description = folder / "release.json"
    names = [variant["file"] for variant in json.loads(description.read_text("utf-8"))["variants"]]
    files = [("description", ("release.json", description.read_bytes(), "application/json"))]
    files += [("artifacts", (name, (folder / name).read_bytes(), "application/octet-stream")) for name in names]
    imported = stage.call().post("/releases/imports", files=files, data={"unmeasured": "true"})
    stage.narrator.line(f"signed as digits {imported['version']} (imported unmeasured, which the audit record holds against its author)")
    return int(imported["id"])
