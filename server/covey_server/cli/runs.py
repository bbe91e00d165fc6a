"""`covey run`: plan, create, watch, list, show, stop."""

import time
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from covey_server.cli.http import ApiClient, connect
from covey_server.cli.output import CommandError, ExitCode, JsonOption, complain, console, say, show_json, show_table

app = typer.Typer(help="Federated runs: plan, start, watch, stop.", no_args_is_help=True)
RunArgument = Annotated[str, typer.Argument(help="Id of the run.", metavar="RUN")]
Task = Annotated[str, typer.Option(help="Name of the task.")]
Rounds = Annotated[int, typer.Option(min=1, help="How many rounds.")]
Noise = Annotated[float, typer.Option(min=0, help="Noise multiplier: standard deviation of the noise / clipping norm.")]
Clip = Annotated[float, typer.Option(min=0, help="Clipping norm of one record's gradient.")]
Rate = Annotated[float, typer.Option(min=0, max=1, help="Chance of each record to be in a step's batch (Poisson).")]
Steps = Annotated[int, typer.Option(min=1, help="Steps a round.")]
Delta = Annotated[float, typer.Option(min=0, max=1, help="At most 1/n of every participant's n records.")]
Participants = Annotated[list[str] | None, typer.Option("--participant", help="Only these; repeat it. Default: every device and partner.")]
MaxEpsilon = Annotated[float, typer.Option(min=0, help="What no participant's dataset may exceed, earlier runs included.")]
_OVER = {"completed", "failed", "stopped"}


@app.command()
def plan(
    task: Task,
    rounds: Rounds,
    noise_multiplier: Noise,
    sample_rate: Rate,
    steps: Steps,
    delta: Delta,
    clipping_norm: Clip = 1.0,
    participant: Participants = None,
    max_epsilon: MaxEpsilon = 8.0,
    as_json: JsonOption = False,
) -> None:
    """Say what a run would cost each participant, before anybody is asked. Exit code 4 if it cannot work."""
    body = _body(task, rounds, _mechanism(noise_multiplier, clipping_norm, sample_rate, steps, delta), participant, max_epsilon)
    with connect() as api:
        found = api.post("/runs/plan", body)
    if as_json:
        show_json(found)
    else:
        rows = [(f["participant"], f"{f['spent']:.3f}", f"{f['after_round'][-1]:.3f}") for f in found["participants"]]
        show_table("Epsilon", ["participant", "spent so far", f"after {rounds} rounds"], rows)
        for refusal in found["refusals"]:
            complain(refusal, what="refused")
    raise typer.Exit(ExitCode.OK if found["possible"] else ExitCode.REFUSED)


@app.command()
def create(
    task: Task,
    model: Annotated[str, typer.Option(help="Name of the model that releases of this run carry.")],
    rounds: Rounds,
    noise_multiplier: Noise,
    sample_rate: Rate,
    steps: Steps,
    delta: Delta,
    clipping_norm: Clip = 1.0,
    learning_rate: Annotated[float | None, typer.Option(help="Of the participants' optimizer.")] = None,
    momentum: Annotated[float | None, typer.Option(help="Of the participants' optimizer.")] = None,
    held_out: Annotated[str, typer.Option(help="Path on the server of an .npz with x and y, to measure accuracy with.")] = "",
    participant: Participants = None,
    min_participants: Annotated[int, typer.Option(min=1, help="Contributions that a round needs to count.")] = 2,
    max_epsilon: MaxEpsilon = 8.0,
    start: Annotated[bool, typer.Option(help="Invite the participants at once.")] = True,
    as_json: JsonOption = False,
) -> None:
    """Create a run and invite its participants."""
    hyperparameters = {k: v for k, v in (("learning_rate", learning_rate), ("momentum", momentum)) if v is not None}
    body = {
        **_body(task, rounds, _mechanism(noise_multiplier, clipping_norm, sample_rate, steps, delta), participant, max_epsilon),
        "model": model,
        "hyperparameters": hyperparameters,
        "held_out": held_out,
        "min_participants": min_participants,
        "start": start,
    }
    with connect() as api:
        made = api.post("/runs", body)
    if as_json:
        show_json(made)
    else:
        typer.echo(made["id"])
        epsilon = made["predicted_epsilon"]
        shown = "without guarantee" if epsilon is None else f"{epsilon:.2f}"
        say(f"{made['rounds_total']} rounds, epsilon {shown}; covey run watch {made['id']}")


@app.command()
def watch(run: RunArgument, timeout: Annotated[float, typer.Option(help="Seconds to wait at most.")] = 86400.0) -> None:
    """Follow a run to its end. Exit code 0 only if it completed."""
    deadline = time.monotonic() + timeout
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(40),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    with connect() as api, Progress(*columns, console=console) as progress:
        bar = progress.add_task(run, total=None, note="")
        while True:
            found = api.get(f"/runs/{run}")
            progress.update(bar, total=found["rounds_total"], completed=found["rounds_done"], note=_note(api, found))
            if found["state"] in _OVER:
                break
            if time.monotonic() > deadline:
                raise CommandError(f"run {run} is still {found['state']} after {timeout:.0f} s")
            time.sleep(1)
    if found["state"] != "completed":
        raise CommandError(f"run {run} {found['state']}: {found['reason']}")


@app.command("list")
def list_runs(as_json: JsonOption = False) -> None:
    """List runs, newest first."""
    with connect() as api:
        runs = api.get_all("/runs")
    if as_json:
        show_json(runs)
    else:
        rows = [(r["id"], r["task"], r["state"], f"{r['rounds_done']}/{r['rounds_total']}", r["created_at"], r["reason"]) for r in runs]
        show_table("Runs", ["run", "task", "state", "rounds", "created", "reason"], rows)


@app.command()
def show(run: RunArgument, as_json: JsonOption = False) -> None:
    """Show a run with its participants and rounds."""
    with connect() as api:
        found, rounds = api.get(f"/runs/{run}"), api.get(f"/runs/{run}/rounds")
    if as_json:
        show_json({**found, "rounds": rounds})
        return
    show_table(f"{run}: {found['state']} {found['reason']}", ["participant", "state", "reason"], _members(found))
    rows = [(r["number"], _percent(r["accuracy"]), r["contributors"], r["sampled"], r["reason"]) for r in rounds]
    show_table("Rounds", ["round", "accuracy", "contributors", "asked", "reason"], rows)


@app.command()
def stop(run: RunArgument, as_json: JsonOption = False) -> None:
    """End a run with the model of its newest finished round. Charges stand."""
    with connect() as api:
        found = api.post(f"/runs/{run}/stop")
    if as_json:
        show_json(found)
    else:
        say(f"run {run}: {found['state']}")


def _mechanism(noise: float, clip: float, rate: float, steps: int, delta: float) -> dict[str, Any]:
    level = "record" if noise > 0 else "none"
    return {"level": level, "noise_multiplier": noise, "clipping_norm": clip, "sample_rate": rate, "steps": steps, "delta": delta}


def _body(task: str, rounds: int, mechanism: dict[str, Any], participants: list[str] | None, max_epsilon: float) -> dict[str, Any]:
    return {"task": task, "rounds": rounds, "plan": mechanism, "participants": participants or [], "max_epsilon": max_epsilon}


def _note(api: ApiClient, run: dict[str, Any]) -> str:
    rounds = api.get(f"/runs/{run['id']}/rounds")
    measured = [r["accuracy"] for r in rounds if r["accuracy"] is not None]
    return f"{run['state']}  accuracy {_percent(measured[-1])}" if measured else str(run["state"])


def _members(run: dict[str, Any]) -> list[tuple[str, str, str]]:
    return [(member["device_id"], member["state"], member["reason"]) for member in run["participants"]]


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.1%}"
