"""READY, WATCHDOG, STATUS and STOPPING: when they are said, with a clock that stands still."""

from dataclasses import dataclass, field
from pathlib import Path

from tests.fakes.agent.outside import Life, World

from covey_agent.core.jobs import InferReady
from covey_agent.daemon.heartbeat import PATIENCE_S


@dataclass
class Manager:
    """A service manager that only listens."""

    watchdog_s: float = 20.0
    heard: list[str] = field(default_factory=list)

    def tell(self, *assignments: str) -> None:
        self.heard += assignments


def boot(world: World) -> tuple[Life, Manager]:
    manager = Manager()
    return world.boot(notifier=manager), manager


def test_an_agent_without_a_model_is_ready_at_once(tmp_path: Path) -> None:
    _, manager = boot(World(tmp_path))
    assert manager.heard.count("READY=1") == 1
    assert "STATUS=not connected: connecting; no model serves" in manager.heard


def test_an_agent_with_a_model_is_ready_when_it_serves(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.fill_slot("A", 1)
    (world.state_dir / "slots" / "proven.json").write_text('{"committed": "A"}')
    life, manager = boot(world)
    assert "READY=1" not in manager.heard
    life.speak("infer", InferReady(load_ms=1))
    assert manager.heard.count("READY=1") == 1
    assert manager.heard[-2:] == ["STATUS=not connected: connecting; slot A serves", "READY=1"]


def test_a_model_that_does_not_load_keeps_nobody_waiting_for_ever(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.fill_slot("A", 1)
    (world.state_dir / "slots" / "proven.json").write_text('{"committed": "A"}')
    life, manager = boot(world)
    life.advance(PATIENCE_S - 1)
    assert "READY=1" not in manager.heard
    life.advance(2)
    assert manager.heard.count("READY=1") == 1


def test_the_loop_beats_twice_in_a_period(tmp_path: Path) -> None:
    life, manager = boot(World(tmp_path))
    before = manager.heard.count("WATCHDOG=1")
    for _ in range(6):
        life.advance(10)
    assert manager.heard.count("WATCHDOG=1") - before == 6


def test_a_stop_is_said_and_a_new_start_is_not(tmp_path: Path) -> None:
    life, manager = boot(World(tmp_path))
    life.agent._shut_down()
    assert "STOPPING=1" in manager.heard
    life, manager = boot(World(tmp_path / "other"))
    life.agent.restart_asked = True
    life.agent._shut_down()
    assert "STOPPING=1" not in manager.heard
