"""Every message survives the wire, its bytes are pinned, and bad bytes are refused in one way."""

import json
import zlib
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from covey_contract import codec, limits
from covey_contract import messages as m
from covey_contract.errors import ContractError, MalformedPayloadError, PayloadTooLargeError
from covey_contract.release import Bounds, Golden, Lineage, Needs, Quality, Release, Runtime, TensorSpec, Variant

D = "ab" * 32
PLAN = m.PrivacyPlan(level="record", noise_multiplier=1.1, clipping_norm=1.0, sample_rate=0.05, steps=20, delta=1e-4)

RELEASE = Release(
    model="digits",
    version=1,
    created_at=1,
    labels=["0", "1"],
    variants=[
        Variant(
            name="onnx-int8",
            precision="int8",
            needs=Needs(runtime=Runtime.ONNXRUNTIME, min_runtime_version="1.20", memory=1),
            artifact=D,
            length=5,
            chunks=[D],
            input=TensorSpec("x", "float32", [-1, 1, 28, 28]),
            output=TensorSpec("y", "float32", [-1, 10]),
            golden_tolerance=0.05,
            quality=Quality(accuracy=0.9, accuracy_drop=0.0, relative_error=0.01, latency_ms=0.1, samples=10),
        )
    ],
    golden=Golden(input_shape=[1, 1], output_shape=[1, 2], inputs="AAAAAA==", outputs="AAAAAAAAAAA="),
    bounds=Bounds(),
    lineage=Lineage(source="run", run="r1", epsilon={"pi-1": 3.5}),
)

# The exact bytes: a change here changes what devices in the field must understand.
GOLDEN_BYTES: list[tuple[msgspec.Struct, bytes]] = [
    (m.Status(m.Presence.ONLINE, "b1", 5), b'{"type":"status","presence":"online","boot":"b1","at":5}'),
    (m.Ack("e1", 41), b'{"type":"ack","epoch":"e1","upto":41}'),
    (m.Ack("e1", 41, forked=True), b'{"type":"ack","epoch":"e1","upto":41,"forked":true}'),
    (m.WantChunks(D, 3, 5), b'{"type":"want_chunks","digest":"' + D.encode() + b'","group":3,"missing":5}'),
    (
        m.WantMetadata("i", "metadata/timestamp.json"),
        b'{"type":"want_metadata","id":"i","name":"metadata/timestamp.json","part":0}',
    ),
    (m.MetadataPart("i", 0, 1, b"ab"), b"\x85\xa4type\xa8metadata\xa2id\xa1i\xa4part\x00\xa5parts\x01\xa4data\xc4\x02ab"),
    (m.Chunk(7, b"\x00\xff"), b"\x92\x07\xc4\x02\x00\xff"),
    (m.StopRun("c1", "pi-1", 9, "r1"), b'{"type":"stop_run","id":"c1","device":"pi-1","expires_at":9,"run":"r1"}'),
    (
        m.Desired(device="pi-1", generation=2, issued_at=9, release=m.ReleaseRef("digits", 1, D), deployment="d1", probation_s=30.0),
        b'{"type":"desired","device":"pi-1","generation":2,"issued_at":9,"release":{"model":"digits","version":1,"manifest":"'
        + D.encode()
        + b'"},"deployment":"d1","probation_s":30.0,"released_from_quarantine":[]}',
    ),
    (m.Signed(b"{}", D, b"\x01\x02"), b'{"type":"signed","payload":"e30=","keyid":"' + D.encode() + b'","signature":"AQI="}'),
    (
        m.Reply("c1", m.Outcome.REFUSED, 4, "no budget"),
        b'{"type":"reply","id":"c1","outcome":"refused","at":4,"reason":"no budget","values":{}}',
    ),
]

MESSAGES: list[msgspec.Struct] = [
    *(message for message, _ in GOLDEN_BYTES),
    RELEASE,
    m.Reported(
        generation=1,
        agent_version="0.1",
        profile=m.Profile.DEVICE,
        at=1,
        slots=[m.SlotReport("A", "digits", 1, D, "onnx-int8", D)],
        deployment=m.DeploymentReport("d1", "digits", 1, m.DeploymentState.PROBATION, rollback_ms=3.5),
        quarantine=[m.Quarantined(D, "crashed", 1)],
        capabilities=m.Capabilities(arch="aarch64", runtimes={"litert": "2.3.0"}),
    ),
    m.ReadingBatch("e1", 0, [m.Reading(1, "infer", {"requests": 3, "p50_ms": 0.5, "note": "x"}, m.Priority.RESULT)], lost={"SAMPLE": 2}),
    m.InviteToRun("c1", "pi-1", 9, "r1", "digits", D, "research", "digits", 8, PLAN, "127.0.0.1:1", {"lr": 0.1}),
    m.ReleaseQuarantine("c1", "pi-1", 9, D),
]


@pytest.mark.parametrize(("message", "payload"), GOLDEN_BYTES, ids=lambda v: type(v).__name__)
def test_the_bytes_on_the_wire_do_not_change(message: msgspec.Struct, payload: bytes) -> None:
    assert codec.encode(message) == payload


@pytest.mark.parametrize("message", MESSAGES, ids=lambda v: type(v).__name__)
def test_every_message_survives_the_wire(message: msgspec.Struct) -> None:
    assert codec.decode(codec.encode(message), type(message)) == message or isinstance(message, Release)


def test_a_release_survives_the_wire() -> None:
    assert codec.decode_release(codec.encode(RELEASE)) == RELEASE


@pytest.mark.parametrize(
    "order", [message for message in MESSAGES if isinstance(message, m.Desired | m.InviteToRun | m.StopRun | m.ReleaseQuarantine)]
)
def test_orders_travel_in_a_signed_envelope(order: m.Desired | m.Command) -> None:
    signed = m.Signed(payload=codec.encode(order), keyid=D, signature=b"")
    assert codec.decode_order(codec.decode(codec.encode(signed), m.Signed)) == order


@pytest.mark.parametrize("kind", [m.Status, m.Reported, m.ReadingBatch, m.Ack, m.MetadataPart, m.Chunk, m.Signed, m.Reply])
@given(payload=st.binary(max_size=200))
def test_random_bytes_are_refused_as_malformed(kind: Any, payload: bytes) -> None:
    try:
        codec.decode(payload, kind)
    except MalformedPayloadError:
        return
    raise AssertionError(f"{payload!r} decoded as {kind}")


@pytest.mark.parametrize("message", MESSAGES, ids=lambda v: type(v).__name__)
def test_a_truncated_message_is_refused(message: msgspec.Struct) -> None:
    payload = codec.encode(message)
    for cut in {1, len(payload) // 2, len(payload) - 1}:
        with pytest.raises(ContractError):
            codec.decode(payload[:cut], type(message))


def test_an_order_with_an_unknown_field_is_refused() -> None:
    payload = codec.encode(m.StopRun("c1", "pi-1", 9, "r1"))[:-1] + b',"shell":"rm"}'
    with pytest.raises(MalformedPayloadError, match="shell"):
        codec.decode_order(m.Signed(payload, D, b""))


def test_a_reported_state_from_a_newer_agent_is_understood() -> None:
    payload = codec.encode(m.Reported(1, "9.9", m.Profile.DEVICE, 1))[:-1] + b',"new_field":1}'
    assert codec.decode(payload, m.Reported).agent_version == "9.9"


def reported(**fields: object) -> bytes:
    return json.dumps({"type": "reported", "generation": 1, "agent_version": "1", "profile": "device", "at": 1, **fields}).encode()


@pytest.mark.parametrize("field", ["generation", "at", "desired_generation"])
def test_a_number_that_no_database_or_calendar_holds_is_refused(field: str) -> None:
    most = limits.MAX_MILLIS if field == "at" else limits.MAX_COUNT
    codec.decode(reported(**{field: most}), m.Reported)
    for value in (most + 1, 2**64, 10**30, -1):
        with pytest.raises(MalformedPayloadError):
            codec.decode(reported(**{field: value}), m.Reported)


def test_an_oversized_payload_is_refused_before_it_is_parsed() -> None:
    with pytest.raises(PayloadTooLargeError, match="at most 131072"):
        codec.decode(b"x" * (limits.MAX_PAYLOAD_BYTES + 1), m.Status)


def test_an_oversized_message_is_never_handed_to_the_broker() -> None:
    with pytest.raises(PayloadTooLargeError):
        codec.encode(m.Chunk(0, b"x" * limits.MAX_PAYLOAD_BYTES))


def test_a_zip_bomb_is_refused_in_bounded_memory() -> None:
    bomb = zlib.compress(b"\x00" * (64 * 1024 * 1024), 9)
    assert len(bomb) < limits.MAX_PAYLOAD_BYTES
    with pytest.raises(MalformedPayloadError, match="unpacks to more"):
        codec.decode(bomb, m.ReadingBatch)


def test_a_full_chunk_fits_the_payload_limit() -> None:
    assert len(codec.encode(m.Chunk(10_000, b"x" * limits.CHUNK_BYTES))) < limits.MAX_PAYLOAD_BYTES


@pytest.mark.parametrize(
    ("length", "chunks", "groups"), [(1, 1, 1), (65536, 1, 1), (65537, 2, 1), (16 * 65536, 16, 1), (16 * 65536 + 1, 17, 2)]
)
def test_chunks_and_groups_cover_an_artifact(length: int, chunks: int, groups: int) -> None:
    assert (limits.chunk_count(length), limits.group_count(length)) == (chunks, groups)


@pytest.mark.parametrize(
    ("field", "value"), [("device", "pi-1\\n"), ("id", "c1\\n"), ("run", "r1\\n"), ("device", "a/b"), ("device", "..")]
)
def test_a_field_with_a_bad_id_is_refused(field: str, value: str) -> None:
    fields = {"id": "c1", "device": "pi-1", "run": "r1"} | {field: value}
    text = "".join(f'"{name}":"{text}",' for name, text in fields.items())
    with pytest.raises(MalformedPayloadError):
        codec.decode_order(m.Signed(f'{{"type":"stop_run",{text}"expires_at":9}}'.encode(), D, b""))
