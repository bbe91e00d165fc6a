"""A week and a year without a broker, lived by the real process in seconds: see `tests/fakes/fast_clock.py`."""

import signal
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from tests.agent.integration.device import Device
from tests.fakes.agent.daemon import AckingServer, Daemon, make_identity
from tests.fakes.agent.fleet import FleetServer
from tests.fakes.fast_clock import FastClock
from tests.fakes.nats_broker import RunningBroker, running_broker, wait_until
from tests.fakes.poison import tame_images
from tests.fakes.services import require
from tests.fakes.usage import open_files, pss_kb

from covey_agent.client import Client

pytestmark = [pytest.mark.broker, pytest.mark.slow]
DAY_S = 86_400
IMAGE = tame_images(1)[0].astype("<f4")
ONLY = "covey_agent.cli"  # children judge themselves by real time


@pytest.fixture
def clock(tmp_path: Path) -> FastClock:
    require(FastClock.is_possible(), "gcc")
    return FastClock(tmp_path)


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[RunningBroker]:
    with running_broker(tmp_path / "server", devices=["cam-1"]) as broker:
        yield broker


def live(clock: FastClock, *, days: float, times: float) -> None:
    """Let so much time pass there."""
    end = clock.added_s() + days * DAY_S
    clock.run(times=times)
    while clock.added_s() < end:
        time.sleep(0.1)
    clock.run(times=1)


def settings(**values: object) -> dict[str, str]:
    return {f"COVEY_AGENT_{name.upper()}": str(value) for name, value in values.items()}


def test_a_week_without_a_broker_loses_no_reading_and_stores_none_twice(tmp_path: Path, broker: RunningBroker, clock: FastClock) -> None:
    make_identity(tmp_path / "state", broker, "cam-1")
    server = AckingServer(broker)
    server.connect()
    environment = clock.environment(only=ONLY) | settings(
        readings_system_interval_s=60, readings_send_interval_s=2, readings_ack_timeout_s=20, report_interval_s=3600
    )
    daemon = Daemon(tmp_path / "state", environment)
    daemon.start()
    try:
        wait_until(lambda: daemon.status()["connected"], what="a connection")
        live(clock, days=0.05, times=1000)
        wait_until(lambda: server.stored, what="the first readings")
        broker.process.stop()
        live(clock, days=3.5, times=25_000)
        daemon.stop(signal.SIGKILL)  # a power cut in the middle of the week, with what was in memory
        cut = daemon.status()
        daemon.start()
        live(clock, days=3.5, times=25_000)
        waiting = daemon.status()
        assert waiting["readings_lost"] == 0
        assert int(str(waiting["readings_on_disk"])) > int(str(cut["readings_on_disk"])) > 2500
        broker.process.start()
        assert server.peer is not None
        server.peer.close()  # two under one name would throw each other out
        again = AckingServer(broker)
        again.stored = server.stored  # one table; it fails if one number names two readings
        again.connect()
        wait_until(lambda: daemon.status()["readings_on_disk"] == 0, what="everything acknowledged", timeout_s=120)
        assert daemon.status()["readings_lost"] == 0
    finally:
        daemon.stop()
    system = [(sequence, reading.at) for (_, sequence), reading in sorted(again.stored.items()) if reading.kind == "system"]
    assert system == sorted(system, key=lambda pair: pair[1]), "filed at its own time, in the order in which it was made"
    assert system[-1][1] - system[0][1] > 7 * DAY_S * 1000
    numbers = sorted(sequence for _, sequence in again.stored)
    jumps = [late for early, late in pairwise(numbers) if late - early > 1]
    assert len(jumps) <= 1, "numbers jump where the power was cut, and nowhere else"


def test_half_a_day_of_idle_life_costs_no_memory_and_no_descriptors(tmp_path: Path, broker: RunningBroker, clock: FastClock) -> None:
    """The month is in `benchmarks/agent_soak.py`."""
    make_identity(tmp_path / "state", broker, "cam-1")
    server = AckingServer(broker)
    server.connect()
    daemon = Daemon(tmp_path / "state", clock.environment(only=ONLY) | settings(readings_system_interval_s=30, readings_ack_timeout_s=600))
    daemon.start()
    try:
        wait_until(lambda: daemon.status()["connected"] and not daemon.children(), what="its first quiet", timeout_s=60)
        live(clock, days=0.1, times=1500)
        before = pss_kb(daemon.pid), open_files(daemon.pid)
        live(clock, days=0.4, times=1500)
        after = pss_kb(daemon.pid), open_files(daemon.pid)
    finally:
        daemon.stop()
    assert len(server.stored) > 500
    assert after[0] - before[0] < 1024
    assert abs(after[1] - before[1]) <= 1  # it may just be connecting anew


@pytest.fixture
def patient_device(tmp_path: Path, clock: FastClock) -> Iterator[Device]:
    """A device that lives in its own time, while its workers do not, so that it must not judge them by its own."""
    with running_broker(tmp_path / "server", devices=["cam-1"]) as broker, FleetServer(broker, "cam-1") as server:
        make_identity(tmp_path / "state", broker, "cam-1")
        server.repository.enrol(tmp_path / "state")
        for_ever = 10_000 * DAY_S
        environment = clock.environment(only=ONLY) | settings(
            readings_system_interval_s=600,
            readings_flush_interval_s=3600,
            readings_max_mb=0.25,
            readings_infer_interval_s=3600,
            report_interval_s=3600,
            inference_silence_timeout_s=for_ever,
            inference_ready_timeout_s=for_ever,
            inference_hang_timeout_s=for_ever,
            deploy_check_timeout_s=for_ever,
        )
        daemon = Daemon(tmp_path / "state", environment)
        daemon.start()
        yield Device(daemon, server, broker)
        daemon.stop(signal.SIGKILL)


def test_after_400_days_alone_it_still_serves_and_its_buffer_is_still_bounded(patient_device: Device, clock: FastClock) -> None:
    device = patient_device
    device.commit_first()
    device.broker.process.stop()
    with Client(device.socket, timeout_s=30) as client:
        for _ in range(4):
            live(clock, days=100, times=2_000_000)
            assert client.infer(IMAGE).version == 1
    status = device.daemon.status()
    assert (status["running"], status["serving"], status["connected"]) == (True, True, False)
    assert int(str(status["readings_bytes"])) <= 0.25 * 2**20
    assert int(str(status["readings_lost"])) > 1000, "what had no room is counted"
    assert (device.daemon.state_dir / "state.db").stat().st_size < 2 * 2**20
    device.daemon.stop(signal.SIGKILL)
    device.daemon.start()
    with Client(device.socket, timeout_s=60) as client:
        assert client.infer(IMAGE).version == 1
