"""Step 3: federated rounds with record-level differential privacy, on participants that decide for themselves."""

import json
import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from rich.progress import Progress, TaskID

from covey_server.demo import plan
from covey_server.demo.actors import program
from covey_server.demo.stage import Stage, StepFailedError

_OVER = {"completed", "failed", "stopped"}


def train(stage: Stage) -> None:
    """Register the task, plan, let participants set their budgets, run, and set the same model without privacy beside it."""
    mechanism = plan.mechanism(stage.options.rounds)
    _register_task(stage)
    order = {"task": "digits", "rounds": stage.options.rounds, "plan": mechanism, "participants": stage.participants, "min_participants": 2}
    forecast = stage.call().post("/runs/plan", order)
    if not forecast["possible"]:
        raise StepFailedError(f"the planner refuses: {'; '.join(forecast['refusals'])}")
    after_round = forecast["participants"][0]["after_round"]
    stage.narrator.line(
        f"planned before it starts: {stage.options.rounds} rounds cost each participant "
        f"epsilon {after_round[-1]:.2f} at delta {plan.DELTA:g}"
    )
    _set_budgets(stage, after_round)
    held_out = str(stage.work_dir / "data" / "held-out.npz")
    run = stage.call().post("/runs", {**order, "model": "digits", "hyperparameters": plan.HYPERPARAMETERS, "held_out": held_out})
    stage.run = run["id"]
    with ThreadPoolExecutor(1) as pool:
        references = pool.submit(_train_references, stage, mechanism)
        try:
            with stage.narrator.progress() as progress:
                bar = progress.add_task("rounds", total=stage.options.rounds, note="inviting")
                stage.wait("the run ends", lambda: _is_over(stage, progress, bar), timeout_s=420)
            for name, accuracies in references.result(timeout=180).items():
                stage.call().post(f"/runs/{stage.run}/references", {"name": name, "accuracies": accuracies})
        finally:
            stage.troupe.cut_calls()  # after Ctrl-C or a failure the pool would wait for them
    _tell(stage)


def _register_task(stage: Stage) -> None:
    code = stage.example("digits", "task.py").read_text("utf-8")
    labels = [str(digit) for digit in range(10)]
    stage.call().post("/tasks", {"name": "digits", "purpose": "research", "dataset": "digits", "labels": labels, "code": code})


def _set_budgets(stage: Stage, after_round: list[float]) -> None:
    """Each participant sets its own budget; the last one is careful, and its budget will not last for all rounds."""
    for participant in stage.participants:
        careful = participant == stage.careful_participant
        budget = plan.tight_budget(after_round) if careful else plan.BUDGET
        stage.budgets[participant] = budget
        argv = [program("covey-agent"), "policy", "set-budget", "digits", str(budget), "--delta", str(plan.DELTA)]
        stage.troupe.call("policy set-budget", [*argv, "--state-dir", str(stage.state_dir(participant))], timeout_s=30)
    stage.narrator.line(
        f"budgets, set by the participants themselves: epsilon {plan.BUDGET:g}; "
        f"{stage.careful_participant} is careful: {stage.budgets[stage.careful_participant]:g}"
    )


def _is_over(stage: Stage, progress: Progress, bar: TaskID) -> bool:
    run = stage.call().get(f"/runs/{stage.run}")
    accuracies = [r["accuracy"] for r in stage.call().get(f"/runs/{stage.run}/rounds") if r["accuracy"] is not None]
    note = f"accuracy {accuracies[-1]:.1%}" if len(accuracies) > 1 else run["state"]
    progress.update(bar, completed=run["rounds_done"], note=note)
    return run["state"] in _OVER


def _train_references(stage: Stage, mechanism: dict[str, Any]) -> dict[str, list[float]]:
    """The same model without privacy, federated and centrally, in a process of its own: what privacy costs."""
    argv = [
        program("python"),
        str(stage.example("digits", "references.py")),
        *("--data", str(stage.work_dir / "data")),
        *("--rounds", str(stage.options.rounds)),
        *("--plan", json.dumps(mechanism)),
        *("--seed", str(stage.options.seed)),
        "--participants",
        *stage.participants,
    ]
    result: dict[str, list[float]] = json.loads(stage.troupe.call("training the references", argv, timeout_s=240))
    return result


def _tell(stage: Stage) -> None:
    run, rounds = stage.call().get(f"/runs/{stage.run}"), stage.call().get(f"/runs/{stage.run}/rounds")
    if run["state"] != "completed":
        raise StepFailedError(f"the run {run['state']}: {run['reason']}")
    accuracies = [r["accuracy"] for r in rounds if r["number"] > 0 and r["accuracy"] is not None]
    stage.narrator.line("accuracy per round: " + " ".join(f"{accuracy:.0%}" for accuracy in accuracies))
    for name, curve in run["references"].items():
        stage.narrator.line(f"the same model, {name}: {curve[-1]:.1%}")
    accounts = {a["device"]: a for a in stage.call().get("/ledger/participants", run=stage.run)["items"]}
    for participant in stage.participants:
        account = accounts.get(participant)
        spent = f"epsilon {account['epsilon']:.2f} in {account['rounds']} rounds" if account else "nothing"
        stage.narrator.line(f"{participant}: spent {spent}, its budget is {stage.budgets[participant]:g}")
    _check(stage, rounds, accounts, accuracies[-1])
    stage.note(
        "training",
        {
            "run": run["id"],
            "plan": run["plan"],
            "accuracy_per_round": [r["accuracy"] for r in rounds],
            "accuracy": accuracies[-1],
            "references": run["references"],
            "delta": plan.DELTA,
            "epsilon": {participant: account["epsilon"] for participant, account in accounts.items()},
            "budget": stage.budgets,
            "own_ledgers": {participant: stage.agent_json(participant, "ledger")["datasets"] for participant in stage.participants},
        },
    )


def _check(stage: Stage, rounds: list[dict[str, Any]], accounts: dict[str, Any], accuracy: float) -> None:
    careful = stage.careful_participant
    refused = [
        (r["number"], c["reason"]) for r in rounds for c in r["contributions"] if c["device_id"] == careful and c["state"] == "refused"
    ]
    goal = stage.accuracy_goal
    stage.held(f"the private model is right on {accuracy:.1%} of the held-out digits (goal: {goal:.0%})", accuracy >= goal)
    worst = max((math.inf if account["epsilon"] is None else account["epsilon"] for account in accounts.values()), default=math.inf)
    stage.held(f"nobody spent more than epsilon 8 (the most: {worst:.2f} at delta {plan.DELTA:g}), recomputed from the ledger", worst <= 8)
    if refused:
        stage.narrator.line(f"round {refused[0][0]}: {careful} refused: {refused[0][1]}")
    stage.held(f"{careful} refused to go over its budget, and the run went on without it", bool(refused))
