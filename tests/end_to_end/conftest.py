"""What the end-to-end tests share. One worker runs all of them (tests/conftest.py), so that each fixture is made once."""

from collections.abc import Iterator

import pytest
from tests.end_to_end.demo_process import Told, tell
from tests.end_to_end.live_fleet import Fleet, live_fleet

from covey_server.demo.serve import start_applications


@pytest.fixture(scope="session")
def told(tmp_path_factory: pytest.TempPathFactory) -> Told:
    """The demo's whole story with small settings, told once by a real `covey demo`."""
    return tell(tmp_path_factory.mktemp("told"), ["--devices", "2", "--partners", "1", "--rounds", "2"], timeout_s=780)


@pytest.fixture(scope="session")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """A server and two devices that serve a model, each asked by an application all the time. Tests must leave it working."""
    with live_fleet(tmp_path_factory.mktemp("fleet") / "work", devices=2) as fleet:
        fleet.deploy(fleet.publish(), *fleet.stage.devices)
        start_applications(fleet.stage)
        fleet.wait("applications get answers", lambda: all(fleet.answers(device) for device in fleet.stage.devices))
        yield fleet
