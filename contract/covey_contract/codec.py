"""Messages to bytes and back, with every limit checked on the way in and on the way out.

    payload = encode(Ack(epoch="e1", upto=41))
    ack = decode(payload, Ack)

Sizes are checked before anything is parsed; unpacking compressed readings stops at a bound, so that a small payload cannot
fill a server's memory.
"""

import hashlib
import zlib
from typing import Any, TypeVar

import msgspec

from covey_contract import limits
from covey_contract.errors import MalformedPayloadError, PayloadTooLargeError
from covey_contract.messages import Chunk, Command, Desired, MetadataPart, ReadingBatch, Signed, WantChunks, WantMetadata
from covey_contract.release import Release

T = TypeVar("T")
Want = WantChunks | WantMetadata
_BINARY = (Chunk, MetadataPart, ReadingBatch)  # MessagePack on the wire
_json = msgspec.json.Encoder(order="deterministic")
_msgpack = msgspec.msgpack.Encoder(order="deterministic")


def encode(message: msgspec.Struct) -> bytes:
    """The payload of one message. Raises PayloadTooLargeError instead of handing the broker a poison message."""
    if isinstance(message, ReadingBatch):
        payload = zlib.compress(_msgpack.encode(message), level=6)
    elif isinstance(message, _BINARY):
        payload = _msgpack.encode(message)
    else:
        payload = _json.encode(message)
    limit = limits.MAX_MANIFEST_BYTES if isinstance(message, Release) else limits.MAX_PAYLOAD_BYTES
    return _bounded(type(message).__name__, payload, limit)


def decode(payload: bytes, kind: type[T]) -> T:
    """Decode and validate one payload as `kind`. Raises PayloadTooLargeError or MalformedPayloadError."""
    message: T = _decode(payload, kind, binary=kind in _BINARY, limit=limits.MAX_PAYLOAD_BYTES, inflate=kind is ReadingBatch)
    return message


def decode_want(payload: bytes) -> Want:
    """Decode what arrives on `up/want`."""
    want: Want = _decode(payload, Want, binary=False, limit=limits.MAX_PAYLOAD_BYTES)
    return want


def decode_release(manifest: bytes) -> Release:
    """Decode a release manifest; its digest must have been verified before."""
    release: Release = _decode(manifest, Release, binary=False, limit=limits.MAX_MANIFEST_BYTES)
    return release


def decode_order(signed: Signed) -> Desired | Command:
    """Decode what a signed envelope carries. The signature is verified elsewhere, before anybody acts on it."""
    order: Desired | Command = _decode(signed.payload, Desired | Command, binary=False, limit=limits.MAX_PAYLOAD_BYTES)
    return order


def digest_of(data: bytes) -> str:
    """sha256 in lower-case hex."""
    return hashlib.sha256(data).hexdigest()


def _decode(payload: bytes, kind: Any, *, binary: bool, limit: int, inflate: bool = False) -> Any:
    name = getattr(kind, "__name__", "message")
    _bounded(name, payload, limit)
    if inflate:
        payload = _inflate(name, payload)
    try:
        if binary:
            return msgspec.msgpack.decode(payload, type=kind)
        return msgspec.json.decode(payload, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise MalformedPayloadError(f"expected {name}, got {len(payload)} bytes that are not one: {exc}") from exc


def _inflate(name: str, payload: bytes) -> bytes:
    unpacker = zlib.decompressobj()
    try:
        data = unpacker.decompress(payload, limits.MAX_INFLATED_BYTES)
    except zlib.error as exc:
        raise MalformedPayloadError(f"expected compressed {name}: {exc}") from exc
    if not unpacker.eof:
        raise MalformedPayloadError(f"{name} is truncated or unpacks to more than {limits.MAX_INFLATED_BYTES} bytes")
    return data


def _bounded(name: str, payload: bytes, limit: int) -> bytes:
    if len(payload) > limit:
        raise PayloadTooLargeError(name, len(payload), limit)
    return payload
