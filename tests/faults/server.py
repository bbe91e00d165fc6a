"""A server for many devices at once: one retained order each, chunks and TUF files for all, and what each of them said."""

import threading
from collections import defaultdict
from dataclasses import dataclass, field

import paho.mqtt.client as mqtt
from tests.fakes.agent.fleet import HEALTHY_INK
from tests.fakes.nats_broker import RunningBroker
from tests.fakes.poison import Behaviour, claimed_outputs, poison_file, poison_variant, tame_images
from tests.fakes.tiny_releases import make_release
from tests.fakes.tuf_repository import Director, TufRepository
from tests.fakes.wants_server import WantsServer

from covey_contract.codec import decode, digest_of, encode
from covey_contract.ids import DeviceId
from covey_contract.messages import Ack, Desired, Reading, ReadingBatch, ReleaseRef, Reported
from covey_contract.release import Runtime
from covey_contract.topics import Channel, device_topic, parse_topic


@dataclass
class Heard:
    """What one device said."""

    reported: list[Reported] = field(default_factory=list)
    readings: dict[tuple[str, int], Reading] = field(default_factory=dict)
    contradictions: list[str] = field(default_factory=list)  # one sequence number, two readings

    def states(self, deployment: str) -> list[str]:
        """The states of a deployment of which a reading came."""
        return [
            str(reading.values["state"])
            for _, reading in sorted(self.readings.items())
            if reading.kind == "deployment" and reading.values.get("deployment") == deployment
        ]


class ManyServer(WantsServer):
    """Answers every device; `heard[device]` grows by itself."""

    def __init__(self, broker: RunningBroker) -> None:
        self.director = Director()
        self.heard: dict[str, Heard] = defaultdict(Heard)
        self.deaf = False  # stores readings without acknowledging them
        self._lock = threading.Lock()
        repository = TufRepository()
        repository.add_target("director.json", self.director.public_document())
        repository.publish()
        super().__init__(broker, repository, {})

    def publish_release(self, version: int, behaviour: Behaviour = Behaviour.CRASH, *, ink: float = HEALTHY_INK) -> ReleaseRef:
        """A release of one ONNX artifact, healthy unless told otherwise."""
        data = poison_file(behaviour, Runtime.ONNXRUNTIME, ink=ink)
        images = tame_images(2)
        variant = poison_variant(data, Runtime.ONNXRUNTIME)
        labels = [str(digit) for digit in range(10)]
        outputs = claimed_outputs(behaviour, images)
        manifest = encode(make_release([variant], inputs=images, outputs=outputs, model="digits", version=version, labels=labels))
        with self._lock:
            self.artifacts[digest_of(data)] = data
            self.repository.add_target(f"releases/digits/{version}.json", manifest)
            self.repository.publish()
        return ReleaseRef(model="digits", version=version, manifest=digest_of(manifest))

    def order(
        self, device: str, generation: int, release: ReleaseRef | None, *, probation_s: float = 0.5, lift: tuple[str, ...] = ()
    ) -> str:
        """Leave the desired state of a device with the broker; returns the deployment's id."""
        deployment = f"dep-{generation}"
        desired = Desired(
            device=device,
            generation=generation,
            issued_at=1,
            release=release,
            deployment=deployment,
            probation_s=probation_s,
            released_from_quarantine=list(lift),
        )
        topic = device_topic(DeviceId(device), Channel.DESIRED)
        self._client.publish(topic, encode(self.director.sign(desired)), qos=1, retain=True).wait_for_publish(10)
        return deployment

    def _on_message(self, client: mqtt.Client, user: object, message: mqtt.MQTTMessage) -> None:
        topic, payload = parse_topic(message.topic), bytes(message.payload)
        assert topic.device is not None
        match topic.channel:
            case Channel.WANT:
                super()._on_message(client, user, message)
            case Channel.REPORTED:
                self.heard[topic.device].reported.append(decode(payload, Reported))
            case Channel.READINGS:
                self._store(topic.device, decode(payload, ReadingBatch))
            case _:
                pass

    def _store(self, device: DeviceId, batch: ReadingBatch) -> None:
        heard = self.heard[device]
        sequences = list(batch.sequences or range(batch.first, batch.first + len(batch.readings)))
        for sequence, reading in zip(sequences, batch.readings, strict=True):
            known = heard.readings.setdefault((batch.epoch, sequence), reading)
            if known != reading:
                heard.contradictions.append(f"number {sequence}: first {known}, then {reading}")
        if not self.deaf:
            ack = encode(Ack(epoch=batch.epoch, upto=max(sequences)))
            self._client.publish(device_topic(device, Channel.ACK), ack, qos=1)
