"""The server's side of the sweep: one gateway for all devices, releases that are good and bad, and everything that devices said."""

import threading
import time
from collections import defaultdict
from dataclasses import dataclass, field

import onnx
import paho.mqtt.client as mqtt
from tests.fakes.nats_broker import RunningBroker, wait_until
from tests.fakes.poison import INK, Behaviour, claimed_outputs, poison_file, poison_variant, tame_images
from tests.fakes.tiny_releases import make_release
from tests.fakes.tuf_repository import Director, TufRepository
from tests.fakes.wants_server import WantsServer

from covey_contract.codec import decode, digest_of, encode
from covey_contract.ids import DeviceId, Digest
from covey_contract.messages import Ack, Command, Desired, Reading, ReadingBatch, ReleaseRef, Reply, Reported, Status
from covey_contract.release import Runtime
from covey_contract.topics import Channel, device_topic, parse_topic

GOOD, BETTER, POISON = 1, 2, 3  # versions
PADDED_BYTES = 1_100_000  # more than one group of chunks


@dataclass
class Heard:
    """What one device said since the last `forget`."""

    reports: list[Reported] = field(default_factory=list)
    readings: dict[tuple[str, int], Reading] = field(default_factory=dict)
    conflicts: list[str] = field(default_factory=list)
    statuses: list[Status] = field(default_factory=list)
    replies: list[Reply] = field(default_factory=list)

    def states(self, kind: str, name: str) -> list[object]:
        """One value of every reading of a kind, in the order of their numbers."""
        return [reading.values.get(name) for _, reading in sorted(self.readings.items()) if reading.kind == kind]


class Fleet(WantsServer):
    """Signs, serves, acknowledges, remembers."""

    def __init__(self, broker: RunningBroker) -> None:
        self.director = Director()
        self._heard: defaultdict[str, Heard] = defaultdict(Heard)
        self._lock = threading.Lock()
        self._generations: defaultdict[str, int] = defaultdict(int)
        self.deaf: set[str] = set()  # devices whose readings are stored and not acknowledged
        repository = TufRepository()
        repository.add_target("director.json", self.director.public_document())
        super().__init__(broker, repository, {})
        self.releases = {version: self._make_release(version) for version in (GOOD, BETTER, POISON)}
        repository.publish()

    def heard(self, device: str) -> Heard:
        """What a device said."""
        with self._lock:
            return self._heard[device]

    def forget(self, device: str, *, generation: int = 10) -> None:
        """As if it had never been there, and nothing is desired of it; `generation` is the last one that it was sent."""
        self._client.publish(device_topic(DeviceId(device), Channel.DESIRED), b"", qos=1, retain=True)
        with self._lock:
            self._heard[device] = Heard()
            self._generations[device] = generation
            self.deaf.discard(device)

    def order(self, device: str, version: int | None, *, probation_s: float = 0.3, released: list[Digest] | None = None) -> str:
        """Publish the next desired state; returns the deployment's id."""
        self._generations[device] += 1
        generation = self._generations[device]
        desired = Desired(
            device=device,
            generation=generation,
            issued_at=1,
            release=self.releases[version] if version else None,
            deployment=f"dep-{generation}" if version else "",
            probation_s=probation_s,
            released_from_quarantine=list(released or []),
        )
        payload = encode(self.director.sign(desired))
        self._client.publish(device_topic(DeviceId(device), Channel.DESIRED), payload, qos=1, retain=True)
        return desired.deployment

    def command(self, device: str, command: Command) -> None:
        """Send a signed command."""
        self._client.publish(device_topic(DeviceId(device), Channel.COMMAND), encode(self.director.sign(command)), qos=1)

    def wait_offline(self, device: str) -> None:
        """Until the broker has told the end of the device's connection: nothing of it is under way any more."""

        def is_offline() -> bool:
            statuses = self.heard(device).statuses
            return not statuses or statuses[-1].presence.value == "offline"

        wait_until(is_offline, what=f"the broker to say that {device} is gone")

    def _make_release(self, version: int) -> ReleaseRef:
        ink = INK if version == POISON else 1.5 + version / 10  # no image has that much: this one never strikes
        data = _pad(poison_file(Behaviour.CRASH, Runtime.ONNXRUNTIME, ink=ink), b"%d" % version)
        images = tame_images(4)
        labels = [str(digit) for digit in range(10)]
        release = make_release(
            [poison_variant(data, Runtime.ONNXRUNTIME)],
            inputs=images,
            outputs=claimed_outputs(Behaviour.CRASH, images),
            model="digits",
            version=version,
            labels=labels,
        )
        manifest = encode(release)
        self.artifacts[digest_of(data)] = data
        self.repository.add_target(f"releases/digits/{version}.json", manifest)
        return ReleaseRef(model="digits", version=version, manifest=digest_of(manifest))

    def _on_message(self, client: mqtt.Client, user: object, message: mqtt.MQTTMessage) -> None:
        topic, payload = parse_topic(message.topic), bytes(message.payload)
        device = str(topic.device)
        heard = self.heard(device)
        match topic.channel:
            case Channel.WANT:
                super()._on_message(client, user, message)
            case Channel.REPORTED:
                heard.reports.append(decode(payload, Reported))
            case Channel.READINGS:
                self._store(device, heard, decode(payload, ReadingBatch))
            case Channel.STATUS:
                heard.statuses.append(decode(payload, Status))
            case Channel.REPLY:
                heard.replies.append(decode(payload, Reply))
            case _:
                pass

    def _store(self, device: str, heard: Heard, batch: ReadingBatch) -> None:
        sequences = batch.sequences or range(batch.first, batch.first + len(batch.readings))
        for sequence, reading in zip(sequences, batch.readings, strict=True):
            known = heard.readings.setdefault((batch.epoch, sequence), reading)
            if known != reading:
                heard.conflicts.append(f"number {sequence} stands for {known} and for {reading}")
        if device not in self.deaf:
            ack = encode(Ack(epoch=batch.epoch, upto=max(sequences)))
            self._client.publish(device_topic(DeviceId(device), Channel.ACK), ack, qos=1)


def _pad(data: bytes, salt: bytes) -> bytes:
    """The same model with so much to read beside it that it comes in more than one group."""
    model = onnx.load_from_string(data)
    entry = model.metadata_props.add()
    entry.key, entry.value = "padding", (salt * PADDED_BYTES)[:PADDED_BYTES].decode()
    padded: bytes = model.SerializeToString()
    return padded


def pause(seconds: float) -> None:
    """Between two looks."""
    time.sleep(seconds)
