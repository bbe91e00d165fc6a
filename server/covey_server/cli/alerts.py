"""`covey alert`: what operators should know."""

from typing import Annotated

import typer

from covey_server.cli.http import connect
from covey_server.cli.output import JsonOption, say, show_json, show_table

app = typer.Typer(help="Alerts.", no_args_is_help=True)


@app.command("list")
def list_alerts(
    everything: Annotated[bool, typer.Option("--all", help="Acknowledged ones too.")] = False,
    device: Annotated[str | None, typer.Option(help="Only of this device.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=200, help="How many, newest first.")] = 50,
    as_json: JsonOption = False,
) -> None:
    """List alerts that wait for somebody, newest first."""
    with connect() as api:
        alerts = api.get("/alerts", open=None if everything else True, device=device, limit=limit)["items"]
    if as_json:
        show_json(alerts)
        return
    fields = ["id", "at", "severity", "what", "device_id", "subject", "detail", "acknowledged_by"]
    show_table("Alerts", fields, [[alert[field] for field in fields] for alert in alerts])


@app.command()
def ack(alert: Annotated[int, typer.Argument(help="Id of the alert.", metavar="ALERT")], as_json: JsonOption = False) -> None:
    """Say that you have seen an alert."""
    with connect() as api:
        seen = api.post(f"/alerts/{alert}/acknowledge")
    if as_json:
        show_json(seen)
    else:
        say(f"alert {alert} ({seen['what']}) is acknowledged")
