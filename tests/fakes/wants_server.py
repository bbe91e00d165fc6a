"""A tiny server on the real broker that answers wants: TUF files from a TufRepository, chunks from a dictionary of artifacts."""

import ssl
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
from tests.fakes.nats_broker import RunningBroker
from tests.fakes.tuf_repository import TufRepository

from covey_contract.codec import decode_want, encode
from covey_contract.ids import Digest
from covey_contract.limits import CHUNK_BYTES, GROUP_CHUNKS
from covey_contract.messages import Chunk, WantChunks, WantMetadata
from covey_contract.topics import Channel, chunk_topic, device_topic, parse_topic, server_subscriptions


class WantsServer:
    """Answers until closed. `chunk_pause_s` makes it slow; `spoil` may change or drop (None) a chunk; `silent` makes it deaf."""

    def __init__(
        self, broker: RunningBroker, repository: TufRepository, artifacts: dict[str, bytes], *, chunk_pause_s: float = 0.0
    ) -> None:
        self.repository = repository
        self.artifacts = artifacts
        self.chunk_pause_s = chunk_pause_s
        self.spoil: Callable[[Chunk], Chunk | None] = lambda chunk: chunk
        self.silent = False
        self.sent: list[int] = []  # index of each chunk sent
        self.wants: list[WantChunks | WantMetadata] = []
        self._ready = threading.Event()
        files = broker.gateway_files()
        context = ssl.create_default_context(cafile=str(files.ca))
        context.load_cert_chain(files.certificate, files.key)
        self._client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id="gateway")
        self._client.tls_set_context(context)
        self._client.on_connect = lambda client, *_: client.subscribe([(topic, 1) for topic in server_subscriptions()])
        self._client.on_subscribe = lambda *_: self._ready.set()
        self._client.on_message = self._on_message
        self._client.connect("127.0.0.1", broker.port, keepalive=10)
        self._client.loop_start()
        assert self._ready.wait(10)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def _on_message(self, _client: mqtt.Client, _user: object, message: mqtt.MQTTMessage) -> None:
        device = parse_topic(message.topic).device
        assert device is not None
        want = decode_want(bytes(message.payload))
        self.wants.append(want)
        if self.silent:
            return
        if isinstance(want, WantMetadata):
            answer = self.repository.answer(want.id, want.name, want.part)
            self._client.publish(device_topic(device, Channel.METADATA), encode(answer), qos=0)
        else:
            self._send_chunks(want)

    def _send_chunks(self, want: WantChunks) -> None:
        data = self.artifacts[want.digest]
        for bit in range(GROUP_CHUNKS):
            index = want.group * GROUP_CHUNKS + bit
            if want.missing >> bit & 1 and index * CHUNK_BYTES < len(data):
                chunk = self.spoil(Chunk(index=index, data=data[index * CHUNK_BYTES : (index + 1) * CHUNK_BYTES]))
                if chunk is not None:
                    self.sent.append(index)
                    self._client.publish(chunk_topic(Digest(want.digest), want.group), encode(chunk), qos=0)
                time.sleep(self.chunk_pause_s)
