"""`covey release`: create, import, list, show, withdraw."""

import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any
from uuid import uuid4

import typer

from covey_server.cli.http import ApiClient, connect
from covey_server.cli.output import CommandError, ExitCode, JsonOption, say, show_json, show_table
from covey_server.cli.release_files import read_import, upload_description

app = typer.Typer(help="Releases: model versions, quantized, measured and signed.", no_args_is_help=True)
ReleaseArgument = Annotated[str, typer.Argument(help="Id of the release, or model:version.", metavar="RELEASE")]
CalibrationOption = Annotated[Path | None, typer.Option(help="An .npz with x and, if there are classes, y.")]
HeldOutOption = Annotated[Path | None, typer.Option(help="An .npz to measure with; without it a part of the calibration data.")]
WaitOption = Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until the build has ended and show its progress.")]
_POLL_S = 1.0


@app.command()
def create(
    run: Annotated[str | None, typer.Option(help="Make it from this run's newest weights.")] = None,
    file: Annotated[Path | None, typer.Option(help="Make it from this .onnx or .pt2 file.", exists=True, dir_okay=False)] = None,
    model: Annotated[str | None, typer.Option(help="Name of the model (with --file).")] = None,
    calibration: CalibrationOption = None,
    held_out: HeldOutOption = None,
    label: Annotated[list[str] | None, typer.Option(help="Name of a class, in order (with --file); repeat it.")] = None,
    variant: Annotated[list[str] | None, typer.Option(help="Only this variant, as onnx-int8; repeat it.")] = None,
    tflite: Annotated[bool, typer.Option(help="Also make TFLite variants.")] = True,
    max_accuracy_drop: Annotated[float | None, typer.Option(help="Accuracy that a variant may lose, as 0.01.")] = None,
    version: Annotated[int | None, typer.Option(help="Version; default: the next one.")] = None,
    note: Annotated[str, typer.Option(help="A remark that stays with the release.")] = "",
    wait: WaitOption = True,
    as_json: JsonOption = False,
) -> None:
    """Quantize, measure and sign a model: from a run, or from a file of yours."""
    options: dict[str, Any] = {
        "variants": variant or [],
        "tflite": tflite,
        "max_accuracy_drop": max_accuracy_drop,
        "version": version,
        "note": note,
    }
    if (run is None) == (file is None):
        raise CommandError("say one of --run and --file", ExitCode.USAGE)
    with connect() as api:
        if run is not None:
            paths = {"calibration": _absolute(calibration), "held_out": _absolute(held_out)}
            release = api.post("/releases", {"run": run, **paths, **options}, headers=_once())
        else:
            release = _upload(api, file, model=model, calibration=calibration, held_out=held_out, options=options | {"labels": label or []})
        if wait:
            release = _wait(api, release)
    _finish(release, as_json=as_json)


@app.command("import")
def import_release(
    source: Annotated[
        Path, typer.Argument(help="A folder with release.json or covey-quantize's report.json, or an .onnx or .pt2 file.", exists=True)
    ],
    model: Annotated[str | None, typer.Option(help="Name of the model, where the folder does not say it.")] = None,
    calibration: CalibrationOption = None,
    unmeasured: Annotated[
        bool, typer.Option("--unmeasured", help="Take artifacts without measurement; goes into the audit record.")
    ] = False,
    version: Annotated[int | None, typer.Option(help="Version; default: the next one.")] = None,
    note: Annotated[str, typer.Option(help="A remark that stays with the release.")] = "",
    wait: WaitOption = True,
    as_json: JsonOption = False,
) -> None:
    """Publish ready-made artifacts from a folder, or build a release from a model file."""
    with connect() as api:
        if source.is_file():
            release = _upload(api, source, model=model, calibration=calibration, held_out=None, options={"version": version, "note": note})
            release = _wait(api, release) if wait else release
        else:
            described = read_import(source, model=model, version=version, note=note)
            with ExitStack() as stack:
                files: list[tuple[str, Any]] = [("description", ("release.json", described.description))]
                files += [("artifacts", (path.name, stack.enter_context(path.open("rb")))) for path in described.artifacts]
                release = api.post("/releases/imports", files=files, data={"unmeasured": str(unmeasured).lower()}, headers=_once())
    _finish(release, as_json=as_json)


@app.command("list")
def list_releases(
    model: Annotated[str | None, typer.Option(help="Only of this model.")] = None,
    state: Annotated[str | None, typer.Option(help="Only building, failed, published or withdrawn.")] = None,
    as_json: JsonOption = False,
) -> None:
    """List releases, the newest first."""
    with connect() as api:
        releases = api.get_all("/releases", model=model, state=state)
    if as_json:
        show_json(releases)
        return
    rows = [
        (
            r["id"],
            f"{r['model']}:{r['version']}",
            r["state"],
            sum(v["accepted"] for v in r["variants"]),
            r["source"],
            r["created_at"],
            r["reason"],
        )
        for r in releases
    ]
    show_table("Releases", ["id", "release", "state", "variants", "from", "created", "reason"], rows)


@app.command()
def show(release: ReleaseArgument, as_json: JsonOption = False) -> None:
    """Show one release with what was measured."""
    with connect() as api:
        found = find_release(api, release)
    if as_json:
        show_json(found)
        return
    _show(found)


@app.command()
def withdraw(
    release: ReleaseArgument,
    reason: Annotated[str, typer.Option(help="Why; shown to everybody who looks at it.")] = "",
    as_json: JsonOption = False,
) -> None:
    """Stop a release: no rollout may ship it, running ones halt. Devices that serve it go on."""
    with connect() as api:
        found = api.post(f"/releases/{find_release(api, release)['id']}/withdraw", {"reason": reason})
    if as_json:
        show_json(found)
    else:
        say(f"{found['model']}:{found['version']} is withdrawn")


def find_release(api: ApiClient, text: str) -> dict[str, Any]:
    """A release by id or by model:version. Raises CommandError."""
    if text.isdecimal():
        found: dict[str, Any] = api.get(f"/releases/{text}")
        return found
    model, _, version = text.replace("/", ":").partition(":")
    if not version.isdecimal():
        raise CommandError(f"expected an id or model:version, got {text!r:.80}", ExitCode.USAGE)
    for release in api.get_all("/releases", model=model):
        if release["version"] == int(version):
            return dict(release)
    raise CommandError(f"there is no release {model}:{version}", ExitCode.NOT_FOUND)


def _upload(
    api: ApiClient, file: Path | None, *, model: str | None, calibration: Path | None, held_out: Path | None, options: dict[str, Any]
) -> dict[str, Any]:
    if file is None or model is None or calibration is None:
        raise CommandError("a model file needs --model NAME and --calibration DATA.npz", ExitCode.USAGE)
    with ExitStack() as stack:
        parts = {"model": file, "calibration": calibration} | ({"held_out": held_out} if held_out else {})
        files = {name: (path.name, stack.enter_context(path.open("rb"))) for name, path in parts.items()}
        data = {"description": upload_description(model, options)}
        made: dict[str, Any] = api.post("/releases/uploads", files=files, data=data, headers=_once())
        return made


def _wait(api: ApiClient, release: dict[str, Any]) -> dict[str, Any]:
    told = ""
    while release["state"] == "building":
        if release["progress"] != told:
            told = release["progress"]
            say(f"{release['model']}:{release['version']}  {told}")
        time.sleep(_POLL_S)
        release = api.get(f"/releases/{release['id']}")
    return release


def _finish(release: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        show_json(release)
    else:
        _show(release)
    if release["state"] == "failed":
        raise CommandError(release["reason"], ExitCode.REFUSED)


def _show(release: dict[str, Any]) -> None:
    lineage = release["lineage"]
    rows: list[Sequence[Any]] = [(name, release[name]) for name in ("id", "state", "source", "created_by", "created_at", "published_at")]
    rows += [(name, release[name]) for name in ("reason", "progress", "note", "manifest_digest") if release[name]]
    if lineage.get("run"):
        rows.append(("run", f"{lineage['run']}, {lineage.get('rounds', 0)} rounds, {lineage.get('participants', 0)} participants"))
    rows += [(f"epsilon of {device}", f"{value:.2f}") for device, value in lineage.get("epsilon", {}).items()]
    show_table(f"{release['model']}:{release['version']}", ["", ""], rows)
    columns = ["variant", "in it", "bytes", "smaller", "accuracy", "lost", "error", "ms", "how, or why not"]
    show_table("Variants", columns, [_variant_row(variant) for variant in release["variants"]])


def _variant_row(variant: dict[str, Any]) -> Sequence[Any]:
    return (
        variant["name"],
        "yes" if variant["accepted"] else "no",
        variant["length"],
        _number(variant["size_ratio"], "{:.1f}x"),
        _number(variant["accuracy"], "{:.2%}"),
        _number(variant["accuracy_drop"], "{:.2%}"),
        _number(variant["relative_error"], "{:.4f}"),
        _number(variant["latency_ms"], "{:.3f}"),
        variant["reason"],
    )


def _number(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)


def _absolute(path: Path | None) -> str:
    return str(path.absolute()) if path else ""


def _once() -> dict[str, str]:
    return {"Idempotency-Key": uuid4().hex}
