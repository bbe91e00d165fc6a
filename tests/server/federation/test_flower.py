"""Rounds over the real thing: a SuperLink, the fleet edge over TLS, and participants in processes of their own.

These are also the contract test for Flower's internal modules: they fail if an upgrade changes what Covey uses.
"""

import os
import signal
import ssl
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from tests.fakes.federation_bench import FederationBench

from covey_contract.messages import PrivacyPlan
from covey_server.federation import service
from covey_server.federation.edge import FLEET_PATHS
from covey_server.federation.models import ContributionState, RunState
from covey_server.privacy import service as ledger
from covey_server.privacy.models import PrivacyEventKind

# Flower builds its bundle with an old name of pathspec.
pytestmark = [pytest.mark.flower, pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")]

TASK = """
import time
import numpy as np
import torch
from torch import nn

def build_model():
    model = nn.Linear(2, 2)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    return model

def load_data(path):
    with np.load(path) as file:
        return file["x"], file["y"]

def compute_loss(model, x, y):
    time.sleep({pause})
    return nn.functional.cross_entropy(model(x), y)

def evaluate(model, x, y):
    with torch.no_grad():
        logits = model(torch.from_numpy(x))
        target = torch.from_numpy(y)
        return float((logits.argmax(1) == target).float().mean()), float(nn.functional.cross_entropy(logits, target))
"""
PLAN = PrivacyPlan(level="record", noise_multiplier=1.0, clipping_norm=1.0, sample_rate=0.5, steps=5, delta=1e-3)


def points(path: Path, *, seed: int) -> Path:
    """Two classes that a line separates."""
    chance = np.random.default_rng(seed)
    x = chance.normal(size=(400, 2)).astype(np.float32)
    np.savez(path, x=x, y=(x[:, 0] + x[:, 1] > 0).astype(np.int64))
    return path


def write_task(folder: Path, *, pause: float = 0.0) -> Path:
    path = folder / "task.py"
    path.write_text(TASK.replace("{pause}", str(pause)), encoding="utf-8")
    return path


def spec(bench: FederationBench, *, rounds: int, min_participants: int = 1) -> service.RunSpec:
    return service.RunSpec(
        task="points",
        model="points",
        rounds=rounds,
        plan=PLAN,
        hyperparameters={"learning_rate": 1.0},
        max_epsilon=100.0,
        min_participants=min_participants,
        held_out=str(points(bench.folder / "held-out.npz", seed=9)),
    )


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[FederationBench]:
    with FederationBench(tmp_path) as made:
        yield made


def https(bench: FederationBench) -> httpx.Client:
    return httpx.Client(base_url=f"https://{bench.edge_address}", verify=ssl.create_default_context(cafile=str(bench.ca_file)), timeout=10)


def test_two_rounds_with_a_refusal_go_over_the_edge_and_strangers_stay_outside(bench: FederationBench) -> None:
    task = write_task(bench.folder)
    keys = {device: bench.add_device(device) for device in ("alpha", "beta")}
    run = bench.create_run(spec(bench, rounds=2), task.read_bytes())
    for device, key in keys.items():
        data = points(bench.folder / f"{device}.npz", seed=len(device))
        bench.accept(device, key=key, data=data, task=task, refused=[2] if device == "beta" else [])
    bench.tick_until(lambda: bench.run(run).state is not RunState.INVITING and bench.run(run).state is not RunState.RUNNING, timeout_s=80)

    assert (bench.run(run).state, bench.run(run).rounds_done) == (RunState.COMPLETED, 2), bench.logs()
    with bench.db.read() as session:
        rounds = service.rounds_of(session, run)
        states = {(c.round, c.device_id): c.state for c in service.contributions_of(session, run)}
        events = [(e.kind, e.device_id, e.round, e.reason) for e in ledger.list_events(session)]
    assert [r.contributors for r in rounds] == [0, 2, 1]
    assert rounds[-1].accuracy is not None
    assert rounds[-1].accuracy > 0.8  # the untrained model guesses
    assert states[2, "beta"] is ContributionState.REFUSED
    assert events.count((PrivacyEventKind.CHARGE, "beta", 2, "")) == 1
    assert [event for event in events if event[0] is PrivacyEventKind.VOID] == [(PrivacyEventKind.VOID, "beta", 2, "over budget")]
    # What was refused was asked about and never trained.
    assert [(told["round"], told["allowed"]) for told in bench.told("beta", "asked")] == [(1, True), (2, False)]
    assert [told["round"] for told in bench.told("beta", "trained")] == [1]

    _check_the_edge(bench)


def _check_the_edge(bench: FederationBench) -> None:
    with https(bench) as client:
        for path in ("/v1/control/list-runs", "/v1/runtime/acquire-task", "/health", "/docs", "/openapi.json"):
            assert client.post(path).status_code == 404, path
        for path in ("/v1/fleet/register-node", "/v1/fleet/unregister-node", "/v1/fleet/get-fab", "/v1/fleet/../control/list-runs"):
            assert client.post(path).status_code == 404, path
        assert client.get("/v1/fleet/pull-messages").status_code == 405
        for call in FLEET_PATHS:  # without a signature by a registered key
            assert client.post(f"/v1/fleet/{call}", headers={"content-type": "application/x-protobuf"}).status_code in {401, 412, 415, 422}
    stranger = bench.add_device("stranger")
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_ssh_private_key

    from covey_agent.workers.errors import RefusedError
    from covey_agent.workers.training import node

    key = load_ssh_private_key(stranger.read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    with pytest.raises(RefusedError, match="not admitted"):
        node.FleetLink.join(bench.edge_address, ca=bench.ca_file.read_bytes(), key=key, patience_s=0)


@pytest.mark.slow
def test_a_superlink_killed_in_the_middle_of_a_round_costs_no_participant_a_second_charge(bench: FederationBench) -> None:
    task = write_task(bench.folder, pause=0.4)  # a round takes long enough to be interrupted
    keys = {device: bench.add_device(device) for device in ("alpha", "beta")}
    run = bench.create_run(spec(bench, rounds=3, min_participants=2), task.read_bytes())
    for device, key in keys.items():
        bench.accept(device, key=key, data=points(bench.folder / f"{device}.npz", seed=len(device)), task=task)
    bench.tick_until(lambda: any(told["round"] == 2 for told in bench.told("alpha", "asked")), timeout_s=80)
    pid = bench.superlink.pid_of("superlink")
    assert pid is not None
    before = bench.run(run)
    assert before.rounds_done == 1  # in the middle of round 2
    os.kill(pid, signal.SIGKILL)
    bench.tick_until(lambda: bench.run(run).state is not RunState.RUNNING, timeout_s=180)

    assert (bench.run(run).state, bench.run(run).rounds_done) == (RunState.COMPLETED, 3), bench.logs()
    assert bench.run(run).flower_run_id != before.flower_run_id
    with bench.db.read() as session:
        events = [(e.kind, e.device_id, e.round) for e in ledger.list_events(session)]
        rounds = service.rounds_of(session, run)
    assert sorted(events) == sorted((PrivacyEventKind.CHARGE, device, number) for device in keys for number in (1, 2, 3))
    assert [r.contributors for r in rounds] == [0, 2, 2, 2]
    for device in keys:
        assert [told["round"] for told in bench.told(device, "trained")] == [1, 2, 3]  # once each, whoever asked again


@pytest.mark.slow
def test_a_participant_killed_in_a_round_is_missing_in_it_and_back_in_the_next(tmp_path: Path) -> None:
    with FederationBench(tmp_path, round_timeout_s=30) as bench:
        task = write_task(bench.folder, pause=0.4)
        keys = {device: bench.add_device(device) for device in ("alpha", "beta")}
        run = bench.create_run(spec(bench, rounds=2), task.read_bytes())
        for device, key in keys.items():
            bench.accept(device, key=key, data=points(bench.folder / f"{device}.npz", seed=len(device)), task=task)
        bench.tick_until(lambda: bool(bench.told("alpha", "asked")), timeout_s=80)
        bench.kill_participant("alpha")
        bench.start_participant("alpha")  # Flower holds it for online still, and lets it in only after its heartbeats are missed
        bench.tick_until(lambda: bench.run(run).state is not RunState.RUNNING, timeout_s=120)

        assert (bench.run(run).state, len(bench.told("alpha", "joined"))) == (RunState.COMPLETED, 2), bench.logs()
        with bench.db.read() as session:
            states = {(c.round, c.device_id): c.state for c in service.contributions_of(session, run)}
            events = [(e.kind, e.device_id, e.round) for e in ledger.list_events(session)]
        assert states[1, "alpha"] is ContributionState.MISSING
        assert states[2, "alpha"] is ContributionState.RECEIVED
        assert (PrivacyEventKind.CHARGE, "alpha", 1) in events  # nobody can say that nothing left it: the charge stands
        assert not [event for event in events if event[0] is PrivacyEventKind.VOID]
