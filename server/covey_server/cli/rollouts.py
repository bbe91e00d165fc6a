"""`covey rollout`: create, start, watch, pause, resume, cancel, list, show."""

import time
from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Any
from uuid import uuid4

import typer
from rich.live import Live
from rich.table import Table

from covey_server.cli.http import connect
from covey_server.cli.output import CommandError, ExitCode, JsonOption, error_console, plain, say, show_json, show_table
from covey_server.cli.releases import find_release

app = typer.Typer(help="Rollouts: the staged delivery of a release.", no_args_is_help=True)
RolloutArgument = Annotated[str, typer.Argument(help="Id of the rollout.", metavar="ROLLOUT")]
_POLL_S = 1.0
_BAR = 12  # characters
_BUSY = ("pending", "sent", "active")
_STATES = ("succeeded", "active", "sent", "pending", "failed", "unresponsive", "skipped")


@app.command()
def create(
    release: Annotated[str, typer.Option(help="Id of the release, or model:version.")],
    device: Annotated[list[str] | None, typer.Option(help="To this device; repeat it.")] = None,
    label: Annotated[list[str] | None, typer.Option(help="To devices with this label, as site=lyon; repeat it to narrow.")] = None,
    all_devices: Annotated[bool, typer.Option("--all", help="To every device (the default).")] = False,
    phase: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME=3, NAME=10% or NAME=pi-1,pi-2; the last one NAME alone. Add :N to allow N failures. Default: canary=1, rest."
        ),
    ] = None,
    name: Annotated[str, typer.Option(help="Default: the release's name.")] = "",
    probation_s: Annotated[float, typer.Option(help="Seconds that a device watches the new model before it commits.")] = 600.0,
    deadline_s: Annotated[float, typer.Option(help="Seconds without progress after which a device counts as failed.")] = 3600.0,
    revert_on_halt: Annotated[bool, typer.Option(help="When halted, send reached devices back to what they served.")] = True,
    start: Annotated[bool, typer.Option("--start", help="Start it at once.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Draft a rollout: who gets the release in which phase."""
    body: dict[str, Any] = {
        "selector": _selector(device or [], label or [], all_devices=all_devices),
        "name": name,
        "probation_s": probation_s,
        "deadline_s": deadline_s,
        "revert_on_halt": revert_on_halt,
        "start": start,
    }
    if phase:
        body["phases"] = [parse_phase(text) for text in phase]
    with connect() as api:
        body["release"] = find_release(api, release)["id"]
        made = api.post("/rollouts", body, headers={"Idempotency-Key": uuid4().hex})
    if as_json:
        show_json(made)
        return
    typer.echo(made["id"])
    say(f"{made['state']}. Next:  covey rollout {'watch' if start else 'start'} {made['id']}")


@app.command()
def start(rollout: RolloutArgument, as_json: JsonOption = False) -> None:
    """Tell the devices of the first phase."""
    _act(rollout, "start", as_json=as_json)


@app.command()
def pause(rollout: RolloutArgument, as_json: JsonOption = False) -> None:
    """Tell no further device."""
    _act(rollout, "pause", as_json=as_json)


@app.command()
def resume(rollout: RolloutArgument, as_json: JsonOption = False) -> None:
    """Go on after a pause."""
    _act(rollout, "resume", as_json=as_json)


@app.command()
def cancel(rollout: RolloutArgument, as_json: JsonOption = False) -> None:
    """End it for good."""
    _act(rollout, "cancel", as_json=as_json)


@app.command("list")
def list_rollouts(
    state: Annotated[str | None, typer.Option(help="Only draft, running, paused, halted, completed or cancelled.")] = None,
    as_json: JsonOption = False,
) -> None:
    """List rollouts, the newest first."""
    with connect() as api:
        rollouts = api.get_all("/rollouts", state=state)
    if as_json:
        show_json(rollouts)
        return
    rows = [
        (r["id"], r["name"], f"{r['model']}:{r['version']}", r["state"], _counts(r["phases"]), r["created_at"], r["reason"])
        for r in rollouts
    ]
    show_table("Rollouts", ["rollout", "name", "release", "state", "devices", "created", "reason"], rows)


@app.command()
def show(rollout: RolloutArgument, as_json: JsonOption = False) -> None:
    """Show one rollout with its phases and devices."""
    with connect() as api:
        found = api.get(f"/rollouts/{rollout}")
        devices = api.get_all(f"/rollouts/{rollout}/devices")
    if as_json:
        show_json(found | {"devices": devices})
        return
    rows: list[Sequence[Any]] = [
        ("release", f"{found['model']}:{found['version']}"),
        ("state", found["state"]),
        ("reason", found["reason"]),
    ]
    rows += [(f"phase {phase['name']}", _counts([phase])) for phase in found["phases"]]
    rows += [(name, found[name]) for name in ("started_at", "finished_at", "created_by")]
    show_table(found["name"], ["", ""], rows)
    columns = ["device", "phase", "state", "deployment", "variant", "reason"]
    names = [phase["name"] for phase in found["phases"]]
    show_table("Devices", columns, [_device_row(device, names) for device in devices])


@app.command()
def watch(
    rollout: RolloutArgument,
    timeout_s: Annotated[float | None, typer.Option(help="Give up after so many seconds.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Show live progress until the rollout has ended; exit code 0 only if it completed."""
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    with connect() as api, Live(console=error_console, auto_refresh=False) as live:
        found = api.get(f"/rollouts/{rollout}")
        while True:
            live.update(_progress(found), refresh=True)
            if found["state"] not in {"draft", "running", "paused"}:
                break
            if deadline is not None and time.monotonic() > deadline:
                raise CommandError(f"rollout {rollout} is still {found['state']} after {timeout_s:g} s")
            time.sleep(_POLL_S)
            found = api.get(f"/rollouts/{rollout}")
    if as_json:
        show_json(found)
    if found["state"] != "completed":
        raise CommandError(f"rollout {rollout} was {found['state']}: {found['reason']}")
    say(f"rollout {rollout} is complete")


def parse_phase(text: str) -> dict[str, Any]:
    """A phase from NAME[=SIZE][:FAILURES]. Raises CommandError."""
    head, _, failures = text.partition(":")
    name, equals, size = head.partition("=")
    phase: dict[str, Any] = {"name": name}
    try:
        if failures:
            phase["max_failures"] = int(failures)
        if size.endswith("%"):
            phase["percent"] = float(size[:-1])
        elif size.isdecimal():
            phase["count"] = int(size)
        elif size:
            phase["devices"] = size.split(",")
    except ValueError as exc:
        raise CommandError(f"expected a phase as canary=1, tenth=10%:2 or lab=pi-1,pi-2, got {text!r:.80}", ExitCode.USAGE) from exc
    if not name or (equals and not size):
        raise CommandError(f"expected a phase as canary=1, tenth=10%:2 or lab=pi-1,pi-2, got {text!r:.80}", ExitCode.USAGE)
    return phase


def _selector(devices: list[str], labels: list[str], *, all_devices: bool) -> dict[str, Any]:
    if (bool(devices), bool(labels), all_devices).count(True) > 1:
        raise CommandError("say one of --device, --label and --all", ExitCode.USAGE)
    if devices:
        return {"devices": devices}
    if labels:
        pairs = [label.partition("=") for label in labels]
        if any(not name or not equals for name, equals, _ in pairs):
            raise CommandError("expected --label name=value", ExitCode.USAGE)
        return {"labels": {name: value for name, _, value in pairs}}
    return {"all": True}


def _act(rollout: str, what: str, *, as_json: bool) -> None:
    with connect() as api:
        found = api.post(f"/rollouts/{rollout}/{what}")
    if as_json:
        show_json(found)
    else:
        say(f"rollout {rollout} is {found['state']}")


def _progress(rollout: dict[str, Any]) -> Table:
    table = Table(
        title=plain(f"{rollout['name']}  {rollout['state']}  {rollout['reason']}"), title_justify="left", box=None, pad_edge=False
    )
    for column in ("phase", "done", *_STATES):
        table.add_column(column, min_width=_BAR if column == "done" else None)
    for number, phase in enumerate(rollout["phases"]):
        counts = phase["devices"]
        total = sum(counts.values())
        done = total - sum(counts.get(state, 0) for state in _BUSY)
        marker = ">" if number == rollout["current_phase"] and rollout["state"] == "running" else " "
        filled = _BAR * done // total if total else 0
        bar = "█" * filled + "░" * (_BAR - filled) if total else "no device"
        table.add_row(plain(f"{marker} {phase['name']}"), bar, *(str(counts.get(state, "")) for state in _STATES))
    return table


def _counts(phases: Sequence[dict[str, Any]]) -> str:
    total: Counter[str] = Counter()
    for phase in phases:
        total.update(phase["devices"])
    return ", ".join(f"{total[state]} {state}" for state in _STATES if total[state])


def _device_row(device: dict[str, Any], phases: Sequence[str]) -> Sequence[Any]:
    reason = device["reason"] or device["variant_reason"]
    return (device["device_id"], phases[device["phase"]], device["state"], device["deployment_state"], device["variant"], reason)
