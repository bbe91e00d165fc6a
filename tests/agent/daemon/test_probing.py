"""A machine is probed when it is new, and when it or a runtime has changed; what was measured on it holds as long."""

from pathlib import Path

import pytest
from tests.fakes.agent.outside import World

from covey_agent.adapters.fingerprint import read_fingerprint
from covey_agent.core.jobs import Probed
from covey_agent.daemon.latencies import MAX_MODELS, Latencies
from covey_contract.messages import Capabilities

CAPABLE = Probed(capabilities=Capabilities(arch="x86_64", runtimes={"onnxruntime": "1.31.1"}), at=1)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def fake_fingerprint(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr("covey_agent.app.read_fingerprint", lambda: text)


def test_a_start_without_a_change_costs_no_child(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_fingerprint(monkeypatch, "one")
    life = world.boot()
    life.speak("probe", CAPABLE)
    life.database.close()
    again = world.boot()
    assert again.running("probe") == []
    assert again.agent._hub.probing.capabilities == CAPABLE.capabilities
    again.database.close()
    fake_fingerprint(monkeypatch, "another")
    changed = world.boot()
    assert len(changed.running("probe")) == 1


def test_a_machine_on_which_nothing_ran_is_probed_at_every_start(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_fingerprint(monkeypatch, "one")
    for _ in range(2):
        life = world.boot()
        assert len(life.running("probe")) == 1
        life.speak("probe", Probed(capabilities=Capabilities(arch="x86_64"), at=1))
        life.database.close()


def test_what_was_measured_is_kept_for_each_model_until_the_machine_changes(world: World) -> None:
    life = world.boot()
    kit = life.agent._kit
    machine = "one"
    latencies = Latencies(kit, lambda: machine)
    latencies.keep("digits", {"onnx-int8@": 1.5})
    for number in range(MAX_MODELS - 1):
        latencies.keep(f"m{number}", {"a@": 1.0})
    assert Latencies(kit, lambda: machine).of("digits") == {"onnx-int8@": 1.5}
    latencies.keep("one more", {"a@": 1.0})
    assert latencies.of("digits") == {}
    machine = "two"
    assert latencies.of("one more") == {}


def test_the_fingerprint_follows_machine_and_runtimes(tmp_path: Path) -> None:
    root, packages = tmp_path / "root", tmp_path / "packages"
    (root / "proc").mkdir(parents=True)
    packages.mkdir()

    def read() -> str:
        return read_fingerprint(packages=[str(packages), str(tmp_path / "missing")], root=root)

    seen = [read()]
    (packages / "onnxruntime-1.31.1.dist-info").mkdir()
    seen.append(read())
    (packages / "unrelated-1.0.dist-info").mkdir()
    assert read() == seen[-1]
    (packages / "onnxruntime-1.31.1.dist-info").rename(packages / "onnxruntime-1.32.0.dist-info")
    seen.append(read())
    (root / "proc" / "cpuinfo").write_text("processor : 0\nFeatures\t: fp asimd\nBogoMIPS : 1\n")
    seen.append(read())
    (root / "proc" / "cpuinfo").write_text("processor : 0\nFeatures\t: fp asimd\nBogoMIPS : 2\n")
    assert read() == seen[-1]
    (root / "proc" / "meminfo").write_text("MemTotal: 1000 kB\nMemFree: 10 kB\n")
    seen.append(read())
    assert len(set(seen)) == len(seen)
