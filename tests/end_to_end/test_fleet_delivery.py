"""How artifacts reach real devices: whole over MQTT, as a delta, and by HTTPS."""

from pathlib import Path
from typing import Any

import pytest
from tests.end_to_end.live_fleet import Fleet
from tests.end_to_end.packed_models import pack_model

pytestmark = [pytest.mark.end_to_end, pytest.mark.slow, pytest.mark.timeout(400)]
MIDDLE, LARGE = 200, 2900  # hidden units; 640 KB, and 9.2 MB: over `delivery.https_first_mb`


def how_it_came(fleet: Fleet, device: str, release: dict[str, Any]) -> dict[str, Any]:
    """What the device said of the artifact's way, once its reading has arrived."""

    def told() -> dict[str, Any] | None:
        readings = fleet.stage.call().get_all(f"/devices/{device}/readings", kind="deployment")
        values = [reading["values"] for reading in readings]
        return next((one for one in values if one.get("version") == release["version"] and "fetched" in one), None)

    return fleet.wait(f"how {release['model']} {release['version']} came to {device}", told)


def test_a_small_change_comes_as_a_delta_and_the_whole_as_a_fall_back(fleet: Fleet, tmp_path: Path) -> None:
    device = fleet.stage.devices[0]
    first = fleet.import_folder(pack_model(tmp_path / "first", seed=4711, hidden=MIDDLE))
    fleet.deploy(first, device)
    whole = how_it_came(fleet, device, first)
    assert whole["fetched"] == "whole, by MQTT"
    second = fleet.import_folder(pack_model(tmp_path / "second", seed=4711, hidden=MIDDLE, nudge=0.25))
    fleet.deploy(second, device)
    delta = how_it_came(fleet, device, second)
    assert delta["fetched"].startswith("delta of ")
    assert delta["bytes_received"] < whole["bytes_received"] / 8


def test_a_large_artifact_comes_by_https(fleet: Fleet, tmp_path: Path) -> None:
    device = fleet.stage.devices[1]
    release = fleet.import_folder(pack_model(tmp_path / "large", seed=4712, hidden=LARGE))
    fleet.deploy(release, device)
    assert how_it_came(fleet, device, release)["fetched"] == "whole, by HTTPS"
