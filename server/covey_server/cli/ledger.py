"""`covey ledger`: what participants have spent, and the events behind it."""

from typing import Annotated

import typer

from covey_server.cli.http import connect
from covey_server.cli.output import JsonOption, show_json, show_table

app = typer.Typer(help="The privacy ledger.", no_args_is_help=True)


@app.command()
def participants(
    run: Annotated[str | None, typer.Option(help="Only what this run cost.")] = None,
    delta: Annotated[float | None, typer.Option(help="At this delta. Default: that of the newest charge.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Epsilon per participant and dataset, recomputed now from the events."""
    with connect() as api:
        accounts = api.get("/ledger/participants", run=run, delta=delta)["items"]
    if as_json:
        show_json(accounts)
        return
    rows = [
        (a["device"], a["dataset"], "no guarantee" if a["epsilon"] is None else f"{a['epsilon']:.3f}", a["delta"], a["rounds"], a["voided"])
        for a in accounts
    ]
    show_table("Ledger", ["participant", "dataset", "epsilon", "delta", "rounds", "voided"], rows)


@app.command()
def events(
    device: Annotated[str | None, typer.Option(help="Only this participant.")] = None,
    run: Annotated[str | None, typer.Option(help="Only this run.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Every charge and void, oldest first."""
    with connect() as api:
        found = api.get_all("/ledger", device=device, run=run)
    if as_json:
        show_json(found)
        return
    rows = [
        (e["id"], e["at"], e["kind"], e["device_id"], e["run_id"], e["round"], e["noise_multiplier"], e["steps"], e["reason"])
        for e in found
    ]
    show_table("Ledger events", ["event", "at", "kind", "participant", "run", "round", "noise", "steps", "reason"], rows)
