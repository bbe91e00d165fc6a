"""Identity for life, on a fleet whose broker is Mosquitto: enrol, deploy, read, rotate, clone, decommission, revoke. All real programs."""

import json
import shutil
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from tests.end_to_end.live_fleet import Fleet, live_fleet
from tests.end_to_end.processes import wait_for
from tests.fakes.nats_broker import wait_until
from tests.fakes.services import require

from covey_agent.client import Client

pytestmark = [pytest.mark.end_to_end, pytest.mark.slow, pytest.mark.timeout(400)]
FIRST, SECOND = "device-1", "device-2"
DECOMMISSIONED = 8  # covey-agent's exit code


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """A server with Mosquitto and two devices that serve a model."""
    require(shutil.which("mosquitto", path="/usr/sbin:/usr/bin:/usr/local/sbin"), "mosquitto")
    environment = {"COVEY_BROKER__KIND": "mosquitto"}
    with live_fleet(tmp_path_factory.mktemp("identity") / "work", devices=2, environment=environment) as fleet:
        fleet.deploy(fleet.publish(), FIRST, SECOND)
        yield fleet


def connects(fleet: Fleet, folder: Path, pair: Path) -> bool:
    """Whether the broker lets in whoever has this key and certificate."""
    results: list[bool] = []
    client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id="a-test", protocol=MQTTProtocolVersion.MQTTv311)
    context = ssl.create_default_context(cafile=str(folder / "ca.crt"))
    context.load_cert_chain(pair / "device.crt", pair / "device.key")
    client.tls_set_context(context)
    client.on_connect = lambda _c, _u, _f, reason, _p: results.append(not reason.is_failure)
    client.on_disconnect = lambda *_: results.append(False)
    client.connect("127.0.0.1", fleet.stage.broker_port)
    client.loop_start()
    wait_until(lambda: results, what="the broker's answer")
    client.disconnect()
    client.loop_stop()
    return results[0]


def identity(fleet: Fleet, name: str) -> dict[str, Any]:
    """What the device itself says of its certificate."""
    shown: dict[str, Any] = fleet.stage.agent_json(name, "identity")
    return shown


def infers(fleet: Fleet, state_dir: Path) -> bool:
    """Whether the device's local API answers."""
    with Client(str(state_dir / "run" / "infer.sock")) as client:
        return bool(client.model())


def wait_online(fleet: Fleet, name: str) -> None:
    fleet.wait(f"{name} is online", lambda: fleet.device(name)["presence"] == "online", timeout_s=90)


def alerts(fleet: Fleet, device: str) -> list[dict[str, Any]]:
    return [alert for alert in fleet.stage.call().get_all("/alerts") if alert["device_id"] == device]


def test_devices_on_mosquitto_deploy_serve_and_send_readings(fleet: Fleet) -> None:
    assert "mosquitto" in " ".join(fleet.server_child("mosquitto.conf").cmdline())
    for name in (FIRST, SECOND):
        assert fleet.device(name)["serving_model"] == "digits"
        assert infers(fleet, fleet.stage.state_dir(name))

    def stored() -> bool:
        return bool(fleet.stage.call().get(f"/devices/{FIRST}/readings", limit=1)["items"])

    fleet.wait("readings of the first device", stored)


def test_an_operator_rotates_a_key_and_the_old_certificate_ends(fleet: Fleet) -> None:
    folder, before = fleet.stage.state_dir(FIRST) / "identity", fleet.device(FIRST)
    done = fleet.covey("device", "rotate", FIRST)
    assert done.returncode == 0, done.stderr
    fleet.wait("the new certificate is in use", lambda: identity(fleet, FIRST)["generation"] == 1 and identity(fleet, FIRST)["proven"])
    after = fleet.wait("the server hears of it", lambda: _reports_by(fleet, FIRST, identity(fleet, FIRST)["serial"]))
    assert after["certificate_serial"] != before["certificate_serial"]
    assert after["presence"] == "online"
    fleet.wait("the old certificate is refused", lambda: not connects(fleet, folder, folder))
    assert connects(fleet, folder, folder / "keys" / "1")


def _reports_by(fleet: Fleet, name: str, serial: str) -> dict[str, Any] | None:
    found = fleet.device(name)
    return found if found["reported"].get("certificate") == serial else None


def test_the_device_renews_by_itself_when_its_owner_asks(fleet: Fleet) -> None:
    generation = identity(fleet, SECOND)["generation"]
    done = fleet.agent("identity", "renew", "--state-dir", str(fleet.stage.state_dir(SECOND)))
    assert done.returncode == 0, done.stderr
    fleet.wait(
        "a new certificate is in use", lambda: identity(fleet, SECOND)["generation"] > generation and identity(fleet, SECOND)["proven"]
    )


def test_a_key_is_renewed_by_the_servers_edge_without_a_broker(fleet: Fleet) -> None:
    """What an agent does whose certificate has expired, by the same child: it proves that it has the old key."""
    generation = identity(fleet, SECOND)["generation"]
    fleet.stage.troupe.stop(SECOND)
    done = fleet.agent("identity", "renew", "--state-dir", str(fleet.stage.state_dir(SECOND)))
    assert done.returncode == 0, done.stderr
    fleet.start_agent(SECOND)
    fleet.wait("it is in use", lambda: identity(fleet, SECOND)["generation"] > generation and identity(fleet, SECOND)["proven"])


def test_a_broker_that_was_killed_has_what_it_kept_again(fleet: Fleet) -> None:
    child = fleet.server_child("mosquitto.conf")
    child.kill()
    child.wait(20)
    retained: list[str] = []
    folder = fleet.stage.state_dir(SECOND) / "identity"
    newest = folder / "keys" / str(identity(fleet, SECOND)["generation"])

    def look() -> bool:
        client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id="a-look", protocol=MQTTProtocolVersion.MQTTv311)
        context = ssl.create_default_context(cafile=str(folder / "ca.crt"))
        context.load_cert_chain(newest / "device.crt", newest / "device.key")
        client.tls_set_context(context)
        client.on_message = lambda _c, _u, message: retained.append(message.topic)
        try:
            client.connect("127.0.0.1", fleet.stage.broker_port)
        except OSError:
            return False
        client.loop(0.5)
        client.subscribe(f"covey/v1/d/{SECOND}/down/desired", 1)
        for _ in range(20):
            client.loop(0.1)
        client.disconnect()
        return bool(retained)

    wait_for("the desired state is there again", look, timeout_s=60, explain=fleet.explain)
    for name in (FIRST, SECOND):
        wait_online(fleet, name)


def test_two_agents_on_copies_of_one_state_are_told(fleet: Fleet, tmp_path: Path) -> None:
    original = fleet.stage.state_dir(SECOND)
    fleet.stage.troupe.stop(SECOND)
    copy = tmp_path / "copied-card"
    shutil.copytree(original, copy, ignore=shutil.ignore_patterns("*.sock"))
    fleet.start_agent(SECOND)
    argv = [str(Path(sys.executable).parent / "covey-agent"), "run", "--state-dir", str(copy)]
    with (tmp_path / "clone.log").open("wb") as log:
        clone = subprocess.Popen(argv, stderr=log)
    try:

        def told() -> dict[str, Any] | None:
            return next((alert for alert in alerts(fleet, SECOND) if alert["what"] == "identity_cloned"), None)

        alert = fleet.wait("the clone is told", told, timeout_s=180)
        shown = fleet.device(SECOND)
        assert alert["severity"] == "critical"
        assert shown["clone_suspected_at"]
        talking = [boot["boot"] for boot in shown["boots"] if boot["returns"]]
        assert any(boot in alert["detail"] for boot in talking), alert
        assert "CLONE" in fleet.covey("device", "show", SECOND).stdout
        assert infers(fleet, original)  # both serve on meanwhile
    finally:
        clone.kill()
        clone.wait(20)
    wait_online(fleet, SECOND)


def test_a_decommissioned_device_answers_wipes_and_stays_away(fleet: Fleet) -> None:
    name = "guest-leaves"
    fleet.join(name)
    state_dir = fleet.stage.state_dir(name)
    (state_dir / "ledger.jsonl").write_text("")
    done = fleet.covey("device", "decommission", name, "--wipe")
    assert done.returncode == 0, done.stderr
    fleet.wait("it is revoked", lambda: fleet.device(name)["state"] == "revoked")
    wait_for("its agent ends", lambda: not fleet.stage.troupe.is_running(name), timeout_s=30, explain=fleet.explain)
    assert sorted(path.name for path in state_dir.iterdir()) == ["agent.lock", "decommissioned.json", "ledger.jsonl"]
    again = fleet.agent("run", "--state-dir", str(state_dir))
    assert again.returncode == DECOMMISSIONED
    assert "decommissioned" in again.stderr
    events = [event for event in fleet.stage.call().get_all("/audit") if event["action"] == "device.decommissioned"]
    assert events[-1]["detail"]["wiped"] == "keys, models, readings"
    assert all("device_decommission" not in alert["what"] for alert in alerts(fleet, name))


def test_a_revoked_device_drops_at_once_and_serves_on(fleet: Fleet) -> None:
    state_dir = fleet.stage.state_dir(FIRST)
    newest = state_dir / "identity" / "keys" / "1"
    assert fleet.covey("device", "decommission", FIRST, "--now").returncode == 0

    def dropped() -> dict[str, Any] | None:
        status: dict[str, Any] = fleet.stage.agent_json(FIRST, "status")
        return status if not status["connected"] else None

    status = fleet.wait("its session drops", dropped, timeout_s=20, poll_s=0.02)
    assert not connects(fleet, state_dir / "identity", newest)
    assert status["running"]
    assert status["serving"]
    assert infers(fleet, state_dir)
    assert json.loads((state_dir / "identity" / "current.json").read_text())["generation"] == 1
    assert fleet.device(SECOND)["presence"] == "online"
