"""The daemon as a real process against the real embedded broker over mutual TLS."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tests.fakes.agent.daemon import AckingServer, Daemon, descendants, make_identity, wait_quietly
from tests.fakes.nats_broker import RunningBroker, running_broker, wait_until
from tests.fakes.tiny_models import linear_onnx
from tests.fakes.tiny_releases import fill_slot, make_release, make_variant

from covey_agent.client import Client

pytestmark = [pytest.mark.broker, pytest.mark.slow]
HEAVY = (
    "numpy",
    "cryptography",
    "torch",
    "flwr",
    "onnxruntime",
    "ai_edge_litert",
    "fastapi",
    "tuf",
    "securesystemslib",
    "asyncio",
    "http.client",
)


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[RunningBroker]:
    with running_broker(tmp_path / "server", devices=["cam-1"]) as broker:
        yield broker


@pytest.fixture
def daemon(tmp_path: Path, broker: RunningBroker) -> Iterator[Daemon]:
    make_identity(tmp_path / "state", broker, "cam-1")
    daemon = Daemon(tmp_path / "state")
    yield daemon
    daemon.stop(signal.SIGKILL)


@pytest.fixture
def server(broker: RunningBroker) -> AckingServer:
    server = AckingServer(broker)
    server.connect()
    return server


def is_complete(server: AckingServer) -> bool:
    """Whether no number is missing between the first and the last."""
    numbers = sorted(sequence for _, sequence in server.stored)
    return numbers == list(range(numbers[0], numbers[-1] + 1))


def test_presence_is_online_and_the_state_is_reported(daemon: Daemon, server: AckingServer) -> None:
    daemon.start()
    server.wait_for(lambda: server.presence() == ["online"], "online")
    server.wait_for(server.reported, "a reported state")
    assert server.reported()[0].profile.value == "device"
    assert daemon.status()["connected"] is True
    assert daemon.stop() == 0
    server.wait_for(lambda: server.presence() == ["online", "offline"], "a clean offline")


def test_nobody_throws_the_agent_out_by_taking_its_name(daemon: Daemon, server: AckingServer, broker: RunningBroker) -> None:
    daemon.start()
    server.wait_for(lambda: server.presence() == ["online"], "online")
    assert broker.connect("cam-1", client_id="cam-1").subscribe("covey/v1/d/cam-1/down/#")
    assert daemon.stop() == 0
    server.wait_for(lambda: server.presence()[-1:] == ["offline"], "a clean offline")
    assert server.presence() == ["online", "offline"]


def test_kill_9_brings_the_last_will_and_leaves_no_child(daemon: Daemon, server: AckingServer) -> None:
    daemon.start()
    server.wait_for(lambda: server.presence() == ["online"], "online")
    wait_until(daemon.children, what="the probe child")
    family = descendants(daemon.pid)
    daemon.stop(signal.SIGKILL)
    server.wait_for(lambda: server.presence() == ["online", "offline"], "the last will")
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in family), what="the children's end")


def test_sigterm_stops_all_children(daemon: Daemon) -> None:
    daemon.start()
    wait_until(daemon.children, what="the probe child")
    family = descendants(daemon.pid)
    assert daemon.stop() == 0
    assert not any(Path(f"/proc/{pid}").exists() for pid in family)


def test_second_agent_on_one_directory_ends_with_a_clear_error(daemon: Daemon, server: AckingServer) -> None:
    daemon.start()
    server.wait_for(server.presence, "online")
    command = [sys.executable, "-m", "covey_agent.cli", "run", "--state-dir", str(daemon.state_dir)]
    second = subprocess.run(command, capture_output=True, text=True, check=False)
    assert second.returncode == 6
    assert f"another agent (process {daemon.pid})" in second.stderr


def test_outage_of_the_broker_loses_no_reading_and_stores_none_twice(daemon: Daemon, broker: RunningBroker, server: AckingServer) -> None:
    daemon.start()
    server.wait_for(lambda: len(server.stored) >= 3, "readings")
    before = len(server.stored)
    broker.process.stop(signal.SIGKILL)
    wait_quietly(2.0)  # readings are made meanwhile
    broker.process.start()
    server.connect()
    server.wait_for(lambda: len(server.stored) >= before + 20, "the readings of the outage")
    assert is_complete(server)


def test_unacknowledged_readings_survive_kill_9_of_the_agent(daemon: Daemon, server: AckingServer) -> None:
    daemon.environment = {"COVEY_AGENT_READINGS_FLUSH_INTERVAL_S": "0.1"}
    server.deaf = True
    daemon.start()
    server.wait_for(lambda: len(server.stored) >= 1, "a first batch")
    wait_quietly(1.0)
    daemon.stop(signal.SIGKILL)
    waiting = int(str(daemon.status()["readings_on_disk"]))
    assert waiting >= 5
    server.stored.clear()
    server.deaf = False
    daemon.start()
    server.wait_for(lambda: len(server.stored) > waiting, "the readings of both lives")
    numbers = sorted(sequence for _, sequence in server.stored)
    assert numbers[waiting - 1] - numbers[0] == waiting - 1, "those of the first life are complete"
    assert numbers[waiting] > numbers[waiting - 1], "and their numbers are not used again"


def test_idle_process_imports_nothing_heavy() -> None:
    code = "import sys, covey_agent.cli, covey_agent.commands.run; print('\\n'.join(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "covey_agent.app" in loaded
    assert [name for name in loaded if name in HEAVY or name.startswith(tuple(f"{heavy}." for heavy in HEAVY))] == []


def test_running_idle_process_maps_no_heavy_library_and_stays_small(daemon: Daemon, server: AckingServer) -> None:
    daemon.start()
    server.wait_for(server.reported, "a reported state")
    wait_until(lambda: not daemon.children(), what="the probe's end")
    maps = Path(f"/proc/{daemon.pid}/maps").read_text()
    assert not [name for name in ("numpy", "cryptography", "torch", "onnxruntime", "_rust") if name in maps]
    rollup = Path(f"/proc/{daemon.pid}/smaps_rollup").read_text().splitlines()
    sizes = {line.split(":")[0]: int(line.split()[1]) for line in rollup if line.endswith("kB")}
    assert sizes["Pss"] <= 30 * 1024, sizes
    assert sizes["Rss"] <= 32 * 1024, "the bound of PSS on a device where nothing else is Python"


def test_broker_under_a_name_that_does_not_exist_does_not_end_the_agent(tmp_path: Path, broker: RunningBroker) -> None:
    make_identity(tmp_path / "state", broker, "cam-1")
    identity = tmp_path / "state" / "identity" / "identity.json"
    identity.write_text(identity.read_text().replace('"localhost", "mqtt_port"', '"no-such-host.invalid", "mqtt_port"'))
    daemon = Daemon(tmp_path / "state")
    daemon.start()
    wait_until(lambda: "not connected to the broker" in daemon.log(), what="the log to say so")
    wait_quietly(1.5)
    assert daemon.process is not None
    assert daemon.process.poll() is None
    assert daemon.stop() == 0


def test_revoked_device_waits_and_goes_on(daemon: Daemon, broker: RunningBroker, server: AckingServer) -> None:
    daemon.start()
    server.wait_for(lambda: server.presence() == ["online"], "online")
    broker.allow()
    wait_until(lambda: daemon.status()["connected"] is False, what="the end of the connection")
    broker.allow("cam-1")
    server.wait_for(lambda: server.presence()[-1] == "online" and len(server.presence()) >= 3, "online again")


@pytest.fixture
def serving(daemon: Daemon) -> Daemon:
    """A device whose committed slot holds a real ONNX model."""
    weights = np.array([[1.0, -1.0], [-1.0, 1.0]], np.float32)
    data = linear_onnx(weights, np.zeros(2, np.float32))
    inputs = np.array([[1.0, 0.0], [0.0, 1.0]], np.float32)
    release = make_release([make_variant(data)], inputs=inputs, outputs=inputs @ weights.T)
    fill_slot(daemon.state_dir / "slots" / "A", release, variant="onnx-float32", data=data)
    (daemon.state_dir / "slots" / "proven.json").write_text('{"committed": "A"}')
    return daemon


def ask(daemon: Daemon) -> str:
    with Client(str(daemon.state_dir / "run" / "infer.sock"), timeout_s=20) as client:
        return str(client.infer([0.0, 1.0]).label)


@pytest.mark.runtime
def test_boot_without_a_broker_serves_the_committed_model(serving: Daemon, broker: RunningBroker) -> None:
    broker.process.stop()
    serving.start()
    wait_until((serving.state_dir / "run" / "infer.sock").exists, what="the socket")
    assert ask(serving) == "yes"
    status = serving.status()
    assert (status["connected"], status["serving"]) == (False, True)


@pytest.mark.runtime
def test_killed_worker_comes_back_and_no_request_is_refused(serving: Daemon, server: AckingServer) -> None:
    serving.start()
    server.wait_for(lambda: any(report.serving for report in server.reported()), "serving")
    assert ask(serving) == "yes"
    for pid in serving.children():
        if b"covey_agent.workers.infer" in Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(pid, signal.SIGKILL)
    with socket.socket(socket.AF_UNIX) as knock:
        knock.connect(str(serving.state_dir / "run" / "infer.sock"))  # queues in the agent's own backlog
    assert ask(serving) == "yes"
    server.wait_for(lambda: any(reading.kind == "alarm" for reading in server.stored.values()), "the alarm")
    server.wait_for(lambda: any(reading.kind == "infer" for reading in server.stored.values()), "an infer reading")


@pytest.mark.runtime
def test_kill_9_of_the_agent_takes_the_worker_with_it(serving: Daemon, server: AckingServer) -> None:
    serving.start()
    server.wait_for(lambda: any(report.serving for report in server.reported()), "serving")
    family = descendants(serving.pid)
    assert len(family) >= 2
    serving.stop(signal.SIGKILL)
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in family), what="the worker's end")
    serving.start()
    assert ask(serving) == "yes"
