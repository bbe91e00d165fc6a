"""`covey readings`: what devices have measured."""

from typing import Annotated, Any

import typer

from covey_server.cli.http import connect
from covey_server.cli.output import JsonOption, show_json, show_table

app = typer.Typer(help="Readings of devices.", no_args_is_help=True)


@app.command()
def show(
    device: Annotated[str | None, typer.Argument(help="Device id; without it, the whole fleet in numbers.", metavar="[DEVICE]")] = None,
    kind: Annotated[str | None, typer.Option(help="With it, single readings: infer, system, deployment, training or alarm.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=200, help="How many single readings.")] = 20,
    as_json: JsonOption = False,
) -> None:
    """Show a device's latest values, single readings of one kind, or the fleet in numbers."""
    tables: list[tuple[str, list[str], list[tuple[Any, ...]]]]
    with connect() as api:
        if device is None:
            data = api.get("/readings/summary")
            tables = [("Readings of the fleet", ["what", "value"], [(name, value) for name, value in data.items()])]
        elif kind is not None:
            data = api.get(f"/devices/{device}/readings", kind=kind, limit=limit)["items"]
            rows = [(r["at"], r["kind"], r["epoch"], r["sequence"], _values(r["values"])) for r in data]
            tables = [(f"Readings of {device}", ["at", "kind", "epoch", "sequence", "values"], rows)]
        else:
            data = api.get(f"/devices/{device}/readings/latest")
            latest = [(entry["kind"], entry["at"], _values(entry["values"])) for entry in data["latest"]]
            streams = [(s["epoch"], s["upto"], s["stored"], s["duplicates"], _values(s["lost"])) for s in data["streams"]]
            tables = [
                (f"Latest of {device}", ["kind", "at", "values"], latest),
                ("Streams", ["epoch", "acknowledged up to", "stored", "came again", "lost on the device"], streams),
            ]
    if as_json:
        show_json(data)
        return
    for title, columns, rows in tables:
        show_table(title, columns, rows)


def _values(values: dict[str, object]) -> str:
    return "  ".join(f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}" for name, value in values.items())
