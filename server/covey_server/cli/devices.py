"""`covey device`: list, show, invite, revoke, rotate, upgrade, decommission, release-quarantine, label."""

from typing import Annotated, Any
from uuid import uuid4

import typer

from covey_server.cli.http import connect
from covey_server.cli.output import CommandError, ExitCode, JsonOption, say, show_json, show_table

app = typer.Typer(help="Devices and partners of the fleet.", no_args_is_help=True)
DeviceArgument = Annotated[str, typer.Argument(help="Device id.", metavar="DEVICE")]


@app.command("list")
def list_devices(
    label: Annotated[list[str] | None, typer.Option(help="Only with this label, as site=lyon; repeat it to narrow the list.")] = None,
    presence: Annotated[str | None, typer.Option(help="Only online, offline or never (seen).")] = None,
    state: Annotated[str | None, typer.Option(help="Only active or revoked.")] = None,
    profile: Annotated[str | None, typer.Option(help="Only device or partner.")] = None,
    text: Annotated[str | None, typer.Option(help="Part of the id or of the served model's name.")] = None,
    as_json: JsonOption = False,
) -> None:
    """List devices."""
    with connect() as api:
        devices = api.get_all("/devices", label=label or None, presence=presence, state=state, profile=profile, text=text)
    if as_json:
        show_json(devices)
        return
    columns = ["device", "profile", "state", "presence", "serving", "deployment", "labels", "last seen"]
    show_table("Devices", columns, [_row(device) for device in devices])


@app.command()
def show(device: DeviceArgument, as_json: JsonOption = False) -> None:
    """Show one device with what it reported."""
    with connect() as api:
        found = api.get(f"/devices/{device}")
    if as_json:
        show_json(found)
        return
    rows = [(name, found[name]) for name in ("id", "profile", "state", "presence", "last_seen_at", "agent_version", "enrolled_at")]
    rows += [
        ("serving", _serving(found)),
        ("deployment", found["deployment_state"]),
        ("labels", _labels(found["labels"])),
        ("certificate until", found["certificate_expires_at"]),
        ("training", found["training"] or "no"),
    ]
    if found["clone_suspected_at"]:
        rows.append(("CLONE", f"two machines speak with its identity since {found['clone_suspected_at']}"))
    if found["decommission"]:
        rows.append(("leaves", f"by {found['decommission_by']}" if found["decommission_by"] else "has left"))
    for slot in found["reported"].get("slots", []):
        rows.append((f"slot {slot['slot']}", f"{slot['model']} {slot['version']} {slot['variant']}" if slot["artifact"] else "empty"))
    rows += [("quarantined", f"{entry['digest'][:12]}  {entry['reason']}") for entry in found["quarantine"]]
    show_table(device, ["", ""], rows)


@app.command()
def invite(
    device: DeviceArgument,
    profile: Annotated[str, typer.Option(help="device: deploys and infers; partner: holds data and joins rounds.")] = "device",
    label: Annotated[list[str] | None, typer.Option(help="A label that it shall have, as site=lyon; may be repeated.")] = None,
    ttl_hours: Annotated[float | None, typer.Option(help="Hours until the invitation expires.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Make a one-time token with which one device may enrol. The token is printed this once."""
    body = {"device": device, "profile": profile, "labels": _parse_labels(label or []), "ttl_hours": ttl_hours}
    with connect() as api:
        made = api.post("/invitations", body, headers={"Idempotency-Key": uuid4().hex})
    if as_json:
        show_json(made)
        return
    typer.echo(made["token"])
    say(f"Valid once, until {made['expires_at']}. On the device:  covey-agent enroll --token TOKEN")


@app.command()
def revoke(device: DeviceArgument, as_json: JsonOption = False) -> None:
    """Take a device out of the fleet; its connection drops at once."""
    with connect() as api:
        gone = api.delete(f"/devices/{device}")
    if as_json:
        show_json(gone)
    else:
        say(f"{device} is revoked")


@app.command()
def rotate(device: DeviceArgument, as_json: JsonOption = False) -> None:
    """Have a device renew its key and certificate now."""
    with connect() as api:
        sent = api.post(f"/devices/{device}/rotations", {})
    if as_json:
        show_json(sent)
    else:
        say(f"{device} is asked for a fresh key; `covey device show {device}` tells when it has connected by the new certificate")


@app.command()
def upgrade(
    device: DeviceArgument,
    version: Annotated[str, typer.Argument(help="A version that `covey agent list` shows.", metavar="VERSION")],
    again: Annotated[bool, typer.Option("--again", help="Even if it failed there before.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Have a device put another version of its agent on trial; it goes back by itself if that is no good."""
    with connect() as api:
        sent = api.post(f"/devices/{device}/upgrades", {"version": version, "again": again})
    if as_json:
        show_json(sent)
    else:
        say(f"{device} is ordered to {version}; `covey device show {device}` tells which version it runs, `covey alert list` what failed")


@app.command()
def decommission(
    device: DeviceArgument,
    wipe: Annotated[bool, typer.Option("--wipe", help="Models, readings and keys are deleted there, if its own policy allows it.")] = False,
    now: Annotated[bool, typer.Option("--now", help="Revoke at once, without asking the device.")] = False,
    wait_hours: Annotated[float, typer.Option(help="Hours until it is revoked although it has not answered.")] = 168.0,
    as_json: JsonOption = False,
) -> None:
    """Retire a device for good: it answers, stops, and wipes what its own policy lets go; then it is revoked."""
    with connect() as api:
        if now:
            found = api.delete(f"/devices/{device}")
        else:
            found = api.post(f"/devices/{device}/decommission", {"wipe": wipe, "wait_hours": wait_hours})
    if as_json:
        show_json(found)
    elif now:
        say(f"{device} is revoked; it was not asked, so whatever it holds stays there")
    else:
        say(f"{device} is asked to leave; it is revoked when it has answered, at the latest in {wait_hours:g} hours")


@app.command("release-quarantine")
def release_quarantine(
    device: DeviceArgument,
    digests: Annotated[
        list[str] | None, typer.Argument(help="Digests, or their first 4 characters or more; none: all of the device.", metavar="DIGEST...")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Let a device try again what failed on it. Nothing is deployed for it: start a rollout for that."""
    with connect() as api:
        told = api.post(f"/devices/{device}/quarantine/releases", {"digests": digests or []})
    if as_json:
        show_json(told)
    else:
        digests = [digest[:12] for digest in told["digests"]]
        say(f"{device} is ordered to release {', '.join(digests)}; `covey device show {device}` tells when it has")


@app.command("label")
def set_labels(
    device: DeviceArgument,
    labels: Annotated[list[str], typer.Argument(help="site=lyon sets a label, site= removes it.", metavar="LABEL...")],
    as_json: JsonOption = False,
) -> None:
    """Set or remove labels."""
    changes = {name: value or None for name, value in _parse_labels(labels).items()}
    with connect() as api:
        found = api.patch(f"/devices/{device}", {"labels": changes})
    if as_json:
        show_json(found)
    else:
        say(f"{device}: {_labels(found['labels']) or 'no labels'}")


def _row(device: dict[str, Any]) -> list[Any]:
    last_seen = device["last_seen_at"]
    return [
        device["id"],
        device["profile"],
        device["state"],
        device["presence"],
        _serving(device),
        device["deployment_state"],
        _labels(device["labels"]),
        last_seen,
    ]


def _serving(device: dict[str, Any]) -> str:
    return f"{device['serving_model']} {device['serving_version']} ({device['serving_variant']})" if device["serving_model"] else "nothing"


def _labels(labels: dict[str, str]) -> str:
    return " ".join(f"{name}={value}" for name, value in labels.items())


def _parse_labels(pairs: list[str]) -> dict[str, str]:
    labels: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not name or not equals:
            raise CommandError(f"expected a label as name=value, got {pair!r}", ExitCode.USAGE)
        labels[name] = value
    return labels
