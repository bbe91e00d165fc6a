"""`covey audit`: who did what."""

from typing import Annotated

import typer

from covey_server.cli.http import connect
from covey_server.cli.output import JsonOption, show_json, show_table

app = typer.Typer(help="The record of who did what.", no_args_is_help=True)


@app.command("list")
def list_audit(
    actor: Annotated[str | None, typer.Option(help="Only of this actor, as user:alice or device:cam-1.")] = None,
    action: Annotated[str | None, typer.Option(help="Only this action, as device.invited, or a whole capability, as device.")] = None,
    subject: Annotated[str | None, typer.Option(help="Only about this.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=200, help="How many, newest first.")] = 50,
    as_json: JsonOption = False,
) -> None:
    """List acts, newest first."""
    with connect() as api:
        events = api.get("/audit", actor=actor, action=action, subject=subject, limit=limit)["items"]
    if as_json:
        show_json(events)
        return
    rows = [(event["at"], event["actor"], event["action"], event["subject"], event["detail"] or "") for event in events]
    show_table("Audit", ["at", "actor", "action", "subject", "detail"], rows)
