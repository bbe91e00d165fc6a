"""`covey task`: create, list, show."""

from pathlib import Path
from typing import Annotated

import typer

from covey_server.cli.http import connect
from covey_server.cli.output import CommandError, ExitCode, JsonOption, show_json, show_table

app = typer.Typer(help="What can be trained: one Python file a task.", no_args_is_help=True)


@app.command()
def create(
    file: Annotated[Path, typer.Argument(help="The task's Python file; docs/federation.md says what it must define.")],
    name: Annotated[str, typer.Option(help="Name of the task.")],
    dataset: Annotated[str, typer.Option(help="Name of the dataset that participants use for it.")],
    purpose: Annotated[str, typer.Option(help="What it is for; participants' policies may restrict purposes.")] = "research",
    label: Annotated[list[str] | None, typer.Option(help="A class of the model, in order; repeat it.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Sign a task's code, so that participants can read it, allow it by its digest, and fetch it."""
    try:
        code = file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise CommandError(f"expected a Python file, cannot read {file}: {exc}", ExitCode.USAGE) from exc
    body = {"name": name, "purpose": purpose, "dataset": dataset, "labels": label or [], "code": code}
    with connect() as api:
        task = api.post("/tasks", body)
    if as_json:
        show_json(task)
    else:
        typer.echo(f"task {task['name']}: {task['digest']}")


@app.command("list")
def list_tasks(as_json: JsonOption = False) -> None:
    """List all versions of all tasks."""
    with connect() as api:
        tasks = api.get_all("/tasks")
    if as_json:
        show_json(tasks)
    else:
        rows = [(t["name"], t["digest"][:16], t["purpose"], t["dataset"], t["created_at"]) for t in tasks]
        show_table("Tasks", ["task", "digest", "purpose", "dataset", "created"], rows)


@app.command()
def show(name: Annotated[str, typer.Argument(help="Name of the task.")], as_json: JsonOption = False) -> None:
    """Show the newest version of a task."""
    with connect() as api:
        task = api.get(f"/tasks/{name}")
    if as_json:
        show_json(task)
    else:
        show_table(name, ["", ""], list(task.items()))
