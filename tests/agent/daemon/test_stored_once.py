"""The buffer and the server's table together: whatever the way between them does, every reading is stored exactly once.

The whole daemon in memory, the real buffer on disk, the server's real service and database. The way repeats, delays, reorders and loses
batches and acknowledgements, the daemon restarts, and its state is put back from a copy.
"""

import shutil
from collections import Counter
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from sqlmodel import delete, select
from tests.fakes.agent.outside import Life, World
from tests.fakes.server_parts import TestParts, add_device, make_parts, sent_messages

from covey_agent.core.buffer import entry_reading
from covey_agent.settings import ReadingsSettings, Settings
from covey_contract.ids import DeviceId
from covey_contract.messages import Priority, Reading, ReadingBatch
from covey_server.outbox import OutboxMessage
from covey_server.telemetry import service
from covey_server.telemetry.models import ReadingRow, ReadingStream

CAM = DeviceId("cam-1")
ACK = "covey/v1/d/cam-1/down/ack"
FAST = Settings(readings=ReadingsSettings(system_interval_s=0, send_interval_s=0.1, flush_interval_s=60, ack_timeout_s=5))
STATE = ("state.db", "state.db-wal", "state.db-shm")


class Telemetry:
    """A device and its server, and the way between them in a test's hands."""

    def __init__(self, folder: Path) -> None:
        self.parts: TestParts = make_parts(folder / "server")
        with self.parts.db.begin() as session:
            add_device(session, CAM)
        self.world = World(folder / "device", settings=FAST)
        self.life: Life = self.world.boot()
        self.life.connect()
        self.made = 0
        self.heard: list[ReadingBatch] = []
        self.backup = folder / "backup"
        self.in_backup: set[int] = set()
        self.gone: set[int] = set()  # with a disk that was put back: nobody has them any more

    def make(self, count: int, priority: Priority) -> None:
        for _ in range(count):
            self.made += 1
            self.life.agent._hub.readings.add("test", {"number": self.made}, priority=priority)
        self.life.advance(0.2, step_s=0.2)

    def deliver(self, batch: ReadingBatch, *, acked: bool) -> None:
        """The server gets a batch; its answer reaches the device, or does not."""
        with self.parts.db.begin() as session:
            service.store_readings(session, CAM, batch, now=self.parts.clock())
        acks = sent_messages(self.parts, ACK)
        with self.parts.db.begin() as session:
            session.exec(delete(OutboxMessage))
        if acked and acks:
            self.life.receive("down/ack", acks[-1].payload)

    def carry(self, *, acked: bool = True, repeat: bool = False) -> int:
        """What the device sends now arrives, once or twice."""
        batches = self.life.batches()
        self.heard += batches
        for batch in batches:
            self.deliver(batch, acked=acked)
            if repeat:
                self.deliver(batch, acked=acked)
        return len(batches)

    def drain(self) -> None:
        """A good connection for as long as it takes."""
        self.life.disconnect()
        self.life.connect()
        for _ in range(200):
            if not self.carry() and not self.life.agent._hub.readings.waiting_bytes():
                return
            self.life.advance(0.2, step_s=0.2)
        raise AssertionError(f"{self.life.agent._hub.readings.waiting_bytes()} bytes are never acknowledged")

    def stop(self) -> None:
        self.life.agent._shut_down()
        self.life.database.close()
        self.heard += self.life.batches()  # sent in the last moment: it may arrive much later, or never

    def restart(self) -> None:
        self.stop()
        self.life = self.world.boot()
        self.life.connect()

    def save_copy(self) -> None:
        """Somebody makes an image of the card."""
        self.stop()
        self.backup.mkdir(exist_ok=True)
        for name in STATE:
            (self.backup / name).unlink(missing_ok=True)
            if (self.world.state_dir / name).exists():
                shutil.copy(self.world.state_dir / name, self.backup / name)
        self.life = self.world.boot()
        self.in_backup = self.held()
        self.life.connect()

    def put_back(self) -> None:
        """And writes it back: what this disk alone had is gone with it."""
        self.stop()
        stored = set(self.stored())
        for name in STATE:
            (self.world.state_dir / name).unlink(missing_ok=True)
            if (self.backup / name).exists():
                shutil.copy(self.backup / name, self.world.state_dir / name)
        self.gone |= set(range(1, self.made + 1)) - stored - self.in_backup
        self.life = self.world.boot()
        self.life.connect()

    def held(self) -> set[int]:
        return {int(str(number)) for number in (self._number(entry) for entry in self._entries()) if number is not None}

    def _entries(self) -> list[Reading]:
        return [entry_reading(entry) for entry in self.life.agent._hub.readings._disk.oldest(100_000)]

    @staticmethod
    def _number(reading: Reading) -> object:
        return reading.values.get("number")

    def stored(self) -> Counter[int]:
        with self.parts.db.read() as session:
            rows = session.exec(select(ReadingRow).where(ReadingRow.kind == "test"))
            return Counter(int(row.values["number"]) for row in rows)

    def streams(self) -> list[ReadingStream]:
        with self.parts.db.read() as session:
            return list(session.exec(select(ReadingStream)))


class Faults(RuleBasedStateMachine):
    """Everything that may happen, in any order."""

    folder: Path
    runs = 0

    @initialize()
    def begin(self) -> None:
        Faults.runs += 1
        self.it = Telemetry(self.folder / str(Faults.runs))

    @rule(count=st.integers(1, 30), priority=st.sampled_from(Priority))
    def readings_are_made(self, count: int, priority: Priority) -> None:
        self.it.make(count, priority)

    @rule(acked=st.booleans(), repeat=st.booleans())
    def batches_arrive(self, acked: bool, repeat: bool) -> None:
        self.it.carry(acked=acked, repeat=repeat)

    @rule()
    def batches_are_lost(self) -> None:
        self.it.heard += self.it.life.batches()  # and may yet come, late

    @rule(which=st.randoms(use_true_random=False), acked=st.booleans())
    def an_old_batch_is_replayed(self, which: object, acked: bool) -> None:
        if self.it.heard:
            self.it.deliver(which.choice(self.it.heard), acked=acked)  # type: ignore[attr-defined]  # a random.Random

    @rule(seconds=st.sampled_from([0.2, 6.0, 70.0]))
    def time_passes(self, seconds: float) -> None:
        self.it.life.advance(seconds, step_s=0.2 if seconds < 1 else 1.0)

    @rule()
    def the_connection_is_lost_and_comes_back(self) -> None:
        self.it.life.disconnect()
        self.it.life.connect()

    @rule()
    def the_agent_restarts(self) -> None:
        self.it.restart()

    @invariant()
    def nothing_is_stored_twice(self) -> None:
        if hasattr(self, "it"):
            assert [number for number, count in self.it.stored().items() if count > 1] == []

    def teardown(self) -> None:
        if not hasattr(self, "it"):
            return
        self.it.drain()
        assert self.it.stored() == Counter(range(1, self.it.made + 1))
        assert sum(sum(stream.lost.values()) for stream in self.it.streams()) == 0
        self.it.stop()


def test_whatever_the_way_does_each_reading_is_stored_exactly_once(tmp_path: Path) -> None:
    class Here(Faults):
        folder = tmp_path

    Here.TestCase.settings = settings(
        max_examples=25, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True
    )
    run_state_machine_as_test(Here, settings=Here.TestCase.settings)


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    before=st.integers(0, 30),
    kept=st.integers(0, 30),
    after=st.integers(0, 30),
    later=st.integers(1, 30),
    sent=st.booleans(),
    again=st.booleans(),
)
def test_a_state_put_back_from_a_copy_loses_nothing_and_repeats_nothing(
    tmp_path_factory: object, before: int, kept: int, after: int, later: int, sent: bool, again: bool
) -> None:
    it = Telemetry(tmp_path_factory.mktemp("copy"))  # type: ignore[attr-defined]  # pytest's own
    it.make(before, Priority.METRIC)
    it.drain()
    it.make(kept, Priority.ALARM)
    it.save_copy()
    it.make(after, Priority.METRIC)
    if sent:
        it.drain()
    for _ in range(1 + again):
        it.put_back()
        it.make(later, Priority.METRIC)
        it.drain()
    stored = it.stored()
    assert set(stored) == set(range(1, it.made + 1)) - it.gone
    assert [number for number, count in stored.items() if count > 1] == []
    it.stop()
