"""A whole small server on the real broker: signs orders, serves TUF files and chunks, acknowledges readings, hears reports."""

from dataclasses import dataclass, field
from pathlib import Path

import paho.mqtt.client as mqtt
from tests.fakes.nats_broker import RunningBroker, wait_until
from tests.fakes.poison import Behaviour, claimed_outputs, poison_file, poison_variant, tame_images
from tests.fakes.tiny_releases import make_release
from tests.fakes.tuf_repository import Director, TufRepository
from tests.fakes.wants_server import WantsServer

from covey_contract.codec import decode, digest_of, encode
from covey_contract.ids import DeviceId
from covey_contract.messages import Ack, Command, DeploymentState, Desired, Reading, ReadingBatch, ReleaseRef, Reply, Reported
from covey_contract.release import Runtime
from covey_contract.topics import Channel, device_topic, parse_topic

HEALTHY_INK = 2.0  # more than any image has: this poison never strikes


@dataclass
class Heard:
    """What devices said."""

    reported: list[Reported] = field(default_factory=list)
    readings: dict[tuple[str, int], Reading] = field(default_factory=dict)
    replies: list[Reply] = field(default_factory=list)


class FleetServer(WantsServer):
    """`publish_release`, then `order`; `heard` grows by itself."""

    def __init__(self, broker: RunningBroker, device: str) -> None:
        self.director = Director()
        self.device = device
        self.heard = Heard()
        self.generation = 0
        repository = TufRepository()
        repository.add_target("director.json", self.director.public_document())
        repository.publish()
        super().__init__(broker, repository, {})

    def publish_release(
        self,
        version: int,
        behaviour: Behaviour = Behaviour.CRASH,
        *,
        ink: float = HEALTHY_INK,
        runtime: Runtime = Runtime.ONNXRUNTIME,
    ) -> ReleaseRef:
        """A release of one artifact, healthy unless told otherwise."""
        data = poison_file(behaviour, runtime, ink=ink)
        images = tame_images(4)
        labels = [str(digit) for digit in range(10)]
        outputs = claimed_outputs(behaviour, images)
        variant = poison_variant(data, runtime)
        manifest = encode(make_release([variant], inputs=images, outputs=outputs, model="digits", version=version, labels=labels))
        self.artifacts[digest_of(data)] = data
        self.repository.add_target(f"releases/digits/{version}.json", manifest)
        self.repository.publish()
        return ReleaseRef(model="digits", version=version, manifest=digest_of(manifest))

    def order(self, release: ReleaseRef | None, *, probation_s: float = 2.0, director: Director | None = None) -> str:
        """Publish the next desired state; returns the deployment's id."""
        self.generation += 1
        deployment = f"dep-{self.generation}"
        desired = Desired(
            device=self.device, generation=self.generation, issued_at=1, release=release, deployment=deployment, probation_s=probation_s
        )
        payload = encode((director or self.director).sign(desired))
        self._client.publish(f"covey/v1/d/{self.device}/down/desired", payload, qos=1, retain=True)
        return deployment

    def publish_agent(self, wheel: Path) -> str:
        """Make a wheel of the agent a signed target; returns its digest."""
        data = wheel.read_bytes()
        self.repository.add_target(f"agents/{wheel.name}", data)
        self.repository.publish()
        return digest_of(data)

    def command(self, command: Command, *, director: Director | None = None) -> None:
        """Send a signed command."""
        payload = encode((director or self.director).sign(command))
        self._client.publish(device_topic(DeviceId(self.device), Channel.COMMAND), payload, qos=1)

    def wait_for(self, deployment: str, state: DeploymentState, *, timeout_s: float = 60.0) -> Reported:
        """Until the device reports this state of this deployment."""

        def found() -> list[Reported]:
            reports = self.heard.reported
            return [one for one in reports if one.deployment and (one.deployment.deployment, one.deployment.state) == (deployment, state)]

        wait_until(found, what=f"{deployment} to be {state.value}; heard {self.history()}", timeout_s=timeout_s)
        return found()[-1]

    def history(self) -> list[str]:
        """The states reported so far, for a message."""
        return [f"{one.deployment.deployment} {one.deployment.state.value}" for one in self.heard.reported if one.deployment]

    def _on_message(self, client: mqtt.Client, user: object, message: mqtt.MQTTMessage) -> None:
        topic, payload = parse_topic(message.topic), bytes(message.payload)
        match topic.channel:
            case Channel.WANT:
                super()._on_message(client, user, message)
            case Channel.REPORTED:
                self.heard.reported.append(decode(payload, Reported))
            case Channel.READINGS:
                self._store(decode(payload, ReadingBatch))
            case Channel.REPLY:
                self.heard.replies.append(decode(payload, Reply))
            case _:
                pass

    def _store(self, batch: ReadingBatch) -> None:
        sequences = batch.sequences or range(batch.first, batch.first + len(batch.readings))
        for sequence, reading in zip(sequences, batch.readings, strict=True):
            self.heard.readings[batch.epoch, sequence] = reading
        ack = encode(Ack(epoch=batch.epoch, upto=max(sequences)))
        self._client.publish(device_topic(DeviceId(self.device), Channel.ACK), ack, qos=1)
