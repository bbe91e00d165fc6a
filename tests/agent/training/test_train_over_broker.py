"""The real train child: order and task verified through TUF over the real broker, rounds over a real SuperLink and its edge."""

import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import msgspec
import numpy as np
import pytest
from tests.fakes.children import Child
from tests.fakes.federation_bench import FederationBench
from tests.fakes.nats_broker import running_broker
from tests.fakes.tuf_repository import Director, TufRepository
from tests.fakes.wants_server import WantsServer

from covey_agent.core.jobs import AskRound, BrokerAddress, RoundDecision, RoundTrained, TrainEnded, TrainJob, TrainReady
from covey_contract.codec import digest_of, encode
from covey_contract.messages import InviteToRun, Outcome, PrivacyPlan, Reply
from covey_server.clock import to_millis, utc_now
from covey_server.federation import service
from covey_server.federation.models import RunState

pytestmark = [
    pytest.mark.flower,
    pytest.mark.broker,
    # Flower builds its bundle with an old name of pathspec.
    pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning"),
]
DEVICE = "pi-1"
CODE = b"""
import numpy as np
from torch import nn

def build_model():
    return nn.Linear(2, 2)

def load_data(path):
    with np.load(path) as file:
        return file["x"], file["y"]

def compute_loss(model, x, y):
    return nn.functional.cross_entropy(model(x), y)
"""
PLAN = PrivacyPlan(level="record", noise_multiplier=1.0, clipping_norm=1.0, sample_rate=0.5, steps=3, delta=1e-3)


class Participant:
    """One invited device with everything that its train child needs."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        (folder / "bench").mkdir()
        self.bench = stack.enter_context(FederationBench(folder / "bench"))
        broker = stack.enter_context(running_broker(folder / "broker", devices=[DEVICE]))
        key = self.bench.add_device(DEVICE)
        spec = service.RunSpec(
            task="points",
            model="points",
            rounds=2,
            plan=PLAN,
            hyperparameters={"learning_rate": 1.0},
            max_epsilon=100.0,
            min_participants=1,
        )
        self.run = self.bench.create_run(spec, CODE)
        self.invitation = self.bench.invitation_of(DEVICE)
        self.director, self.repository = Director(), TufRepository()
        self.repository.add_target("director.json", self.director.public_document())
        self.repository.add_target(f"tasks/points/{digest_of(CODE)}.py", CODE)
        self.repository.publish()
        stack.enter_context(WantsServer(broker, self.repository, {}))
        files = broker.identity(DEVICE)
        both = folder / "both.crt"  # here broker and edge have an authority each; in a fleet it is one
        both.write_bytes(files.ca.read_bytes() + self.bench.ca_file.read_bytes())
        np.savez(folder / "share.npz", x=np.random.default_rng(1).normal(size=(200, 2)).astype(np.float32), y=np.arange(200) % 2)
        self.job = TrainJob(
            state_dir=str(self.repository.enrol(folder / "state")),
            broker=BrokerAddress("127.0.0.1", broker.port, str(both), str(files.certificate), str(files.key), DEVICE),
            order=self.signed(self.invitation),
            fleet_api=self.bench.edge_address,
            supernode_key=str(key),
            data={"points": str(folder / "share.npz")},
        )

    def signed(self, invitation: InviteToRun) -> bytes:
        return encode(self.director.sign(invitation))

    def accept(self) -> None:
        with self.bench.db.begin() as session:
            service.take_reply(session, self.invitation.device, Reply(id=self.invitation.id, outcome=Outcome.ACCEPTED, at=1), now=utc_now())  # type: ignore[arg-type]  # a checked id


@pytest.fixture(scope="module")
def participant(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Participant]:
    with ExitStack() as stack:
        yield Participant(tmp_path_factory.mktemp("train"), stack)


def end_of(job: TrainJob) -> TrainEnded:
    with Child("train", job) as child:
        return child.wait_for(TrainEnded, timeout_s=60)


def test_an_order_that_does_not_verify_is_not_followed(participant: Participant) -> None:
    forged = encode(Director().sign(participant.invitation))
    other = participant.signed(msgspec.structs.replace(participant.invitation, device="pi-2"))
    expired = participant.signed(msgspec.structs.replace(participant.invitation, expires_at=to_millis(utc_now()) - 1))
    unknown_code = participant.signed(msgspec.structs.replace(participant.invitation, task_digest="0" * 64))
    reasons = []
    for order in (forged, other, expired, unknown_code):
        ended = end_of(msgspec.structs.replace(participant.job, order=order))
        assert not ended.ok
        reasons.append(ended.reason)
    for reason, part in zip(reasons, ("does not name", "for device pi-2", "expired", "not among the fleet's signed targets"), strict=True):
        assert part in reason


def test_it_joins_asks_before_each_round_trains_and_ends_with_the_agent(participant: Participant) -> None:
    bench, run = participant.bench, participant.run
    participant.accept()
    bench.tick_until(lambda: bench.run(run).state is RunState.RUNNING, timeout_s=30)
    with Child("train", participant.job) as child:
        assert child.wait_for(TrainReady, timeout_s=90).node
        for number in (1, 2):
            asked = child.wait_for(AskRound, timeout_s=60)
            assert (asked.run, asked.round, asked.dataset, asked.plan) == (run, number, "points", PLAN)
            time.sleep(0.5)  # while nobody has decided, nothing may come
            assert child.events.empty()
            child.order(RoundDecision(run=run, round=number, allowed=True, reason="", epsilon=1.0))
            assert child.wait_for(RoundTrained, timeout_s=60).values["steps"] == PLAN.steps
        bench.tick_until(lambda: bench.run(run).state is RunState.COMPLETED, timeout_s=60)
        assert child.process.stdin is not None
        child.process.stdin.close()
        (ended,) = child.rest()
        assert isinstance(ended, TrainEnded)
        assert (ended.run, ended.ok, child.process.returncode) == (run, True, 0), child.log
