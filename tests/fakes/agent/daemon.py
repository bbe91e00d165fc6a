"""The real daemon as a process, for tests: a state directory with a real identity, start, look, kill; and a server that acknowledges."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.fakes.nats_broker import Peer, RunningBroker, wait_until

from covey_contract.codec import decode, encode
from covey_contract.messages import Ack, Reading, ReadingBatch, Reported, Status
from covey_contract.topics import server_subscriptions

QUICK = {
    "COVEY_AGENT_READINGS_SYSTEM_INTERVAL_S": "0.1",
    "COVEY_AGENT_READINGS_SEND_INTERVAL_S": "0.1",
    "COVEY_AGENT_READINGS_ACK_TIMEOUT_S": "2",
    "COVEY_AGENT_READINGS_INFER_INTERVAL_S": "0.2",
}


@dataclass
class Daemon:
    """`covey-agent run` on one state directory."""

    state_dir: Path
    environment: dict[str, str] = field(default_factory=dict)
    module: str = "covey_agent.cli"  # or the launcher
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; its log goes to agent.log in the state directory."""
        with (self.state_dir / "agent.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", self.module, "run", "--state-dir", str(self.state_dir)],
                stderr=log,
                env=os.environ | QUICK | self.environment,
            )

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self.process is not None
        return self.process.pid

    def log(self) -> str:
        """Everything that it logged."""
        return (self.state_dir / "agent.log").read_text()

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal, wait for the end, and return the exit code."""
        if self.process is None:
            return 0
        self.process.send_signal(number)
        code = self.process.wait(20)
        self.process = None
        return code

    def status(self) -> dict[str, object]:
        """What `covey-agent status --json` says."""
        command = [sys.executable, "-m", "covey_agent.cli", "status", "--json", "--state-dir", str(self.state_dir)]
        done = subprocess.run(command, capture_output=True, check=True)
        status: dict[str, object] = json.loads(done.stdout)
        return status

    def children(self) -> list[int]:
        """The process ids of its children."""
        return [pid for pid in descendants(self.pid) if pid != self.pid]


def descendants(root: int) -> list[int]:
    """All living processes below `root`, itself included."""
    parents: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            rest = path.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if rest[0] != "Z":
            parents[int(path.parent.name)] = int(rest[1])
    found = [root]
    for pid in found:
        found += [child for child, parent in parents.items() if parent == pid]
    return found


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that only waits to be buried does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (OSError, IndexError):
        return False


def make_identity(state_dir: Path, broker: RunningBroker, device: str, *, profile: str = "device", port: int | None = None) -> None:
    """What enrolment leaves, with a certificate of the test fleet's CA."""
    folder = state_dir / "identity"
    folder.mkdir(parents=True)
    files = broker.identity(device)
    (folder / "device.crt").write_bytes(files.certificate.read_bytes())
    (folder / "device.key").write_bytes(files.key.read_bytes())
    (folder / "ca.crt").write_bytes(files.ca.read_bytes())
    content = {
        "device": device,
        "profile": profile,
        "url": "https://localhost:1",
        "mqtt_host": "localhost",
        "mqtt_port": port or broker.port,
        "fleet_api": "localhost:1",
        "ca_fingerprint": "0" * 64,
        "enrolled_at": 1,
    }
    (folder / "identity.json").write_text(json.dumps(content))


class AckingServer:
    """Stores readings once each, by (epoch, sequence), and acknowledges; `deaf` makes it store without answering."""

    def __init__(self, broker: RunningBroker) -> None:
        self._broker = broker
        self.stored: dict[tuple[str, int], Reading] = {}
        self.repeated = 0
        self.deaf = False
        self.peer: Peer | None = None

    def connect(self) -> None:
        """Subscribe to everything that devices send."""
        self.peer = self._broker.connect("gateway", files=self._broker.gateway_files())
        handle = self.peer.client.on_message

        def on_message(client: object, user: object, message: object) -> None:
            assert handle is not None
            handle(client, user, message)  # type: ignore[arg-type]  # paho's own arguments, handed on
            topic, payload, _ = self._peer().messages[-1]
            if topic.endswith("up/readings"):
                self._store(topic, decode(payload, ReadingBatch))

        self.peer.client.on_message = on_message
        for topic in server_subscriptions():
            assert self.peer.subscribe(topic)

    def reported(self) -> list[Reported]:
        """Every reported state that came."""
        return [decode(payload, Reported) for topic, payload, _ in list(self._peer().messages) if topic.endswith("up/reported")]

    def presence(self) -> list[str]:
        """Every presence that came."""
        return [decode(payload, Status).presence.value for topic, payload, _ in list(self._peer().messages) if topic.endswith("/status")]

    def wait_for(self, condition: Callable[[], object], what: str) -> None:
        """Until something has come."""
        wait_until(condition, what=what)

    def _store(self, topic: str, batch: ReadingBatch) -> None:
        sequences = batch.sequences or range(batch.first, batch.first + len(batch.readings))
        for sequence, reading in zip(sequences, batch.readings, strict=True):
            known = self.stored.setdefault((batch.epoch, sequence), reading)
            assert known == reading, "one sequence number, two readings"
            self.repeated += known is not reading
        if not self.deaf:
            ack = encode(Ack(epoch=batch.epoch, upto=max(sequences)))
            self._peer().client.publish(topic.replace("up/readings", "down/ack"), ack, qos=1)

    def _peer(self) -> Peer:
        assert self.peer is not None
        return self.peer


def wait_quietly(seconds: float) -> None:
    """Let real time pass, where the passing of time is what is tested."""
    threading.Event().wait(seconds)
