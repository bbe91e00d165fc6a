"""`covey agent`: publish, list. Versions of the agent itself; `covey device upgrade` orders one."""

from pathlib import Path
from typing import Annotated

import typer

from covey_server.cli.http import connect
from covey_server.cli.output import CommandError, ExitCode, JsonOption, say, show_json, show_table

app = typer.Typer(help="Versions of the agent that devices can be upgraded to.", no_args_is_help=True)


@app.command()
def publish(
    wheel: Annotated[Path, typer.Argument(help="covey-VERSION-py3-none-any.whl", metavar="WHEEL")],
    as_json: JsonOption = False,
) -> None:
    """Sign a wheel of covey, so that devices may run it. For administrators."""
    try:
        data = wheel.read_bytes()
    except OSError as exc:
        raise CommandError(f"expected a wheel, cannot read {wheel}: {exc.strerror}", ExitCode.USAGE) from exc
    with connect() as api:
        made = api.post("/agent-versions", files={"wheel": (wheel.name, data)})
    if as_json:
        show_json(made)
    else:
        say(f"agent {made['version']} is signed: {made['digest']}; `covey device upgrade DEVICE {made['version']}` orders it")


@app.command("list")
def list_versions(as_json: JsonOption = False) -> None:
    """List the signed versions."""
    with connect() as api:
        versions = api.get("/agent-versions")
    if as_json:
        show_json(versions)
    else:
        show_table("Agent versions", ["version", "digest"], [(one["version"], one["digest"]) for one in versions])
