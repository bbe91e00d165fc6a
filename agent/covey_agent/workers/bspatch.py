"""Apply a BSDIFF40 patch in bounded memory: the old file is read in pieces, the patch unpacked in pieces, the new file written in pieces.

The format (Colin Percival, bsdiff 4.0): a header of 32 bytes (magic, length of the control block, length of the difference block,
length of the new file), then three bzip2 streams: control, difference, extra. Control holds triples of numbers (add, copy, seek):
`add` bytes of the difference are added to as many of the old file, `copy` bytes come from extra, then the old file's position moves
by `seek`. Numbers are 8 bytes, little-endian, sign and magnitude.

A patch comes from the network and is trusted in nothing: every number is checked, what is written never exceeds the length that the
caller expects, and whether the result is right is decided by its digest, not here.
"""

import bz2
import os
import struct
from pathlib import Path
from typing import BinaryIO

from covey_agent.workers.errors import UntrustedError

MAGIC = b"BSDIFF40"
HEADER_BYTES = 32
PIECE_BYTES = 64 * 1024
_NUMBER = struct.Struct("<Q")
_SIGN = 1 << 63


def apply_patch(old: Path, patch: Path, new: BinaryIO, *, length: int) -> None:
    """Write the new file, of exactly `length` bytes, to `new`. Raises UntrustedError for a patch that is none, and OSError."""
    size = patch.stat().st_size
    with old.open("rb") as source, patch.open("rb") as header_file:
        header = header_file.read(HEADER_BYTES)
        if len(header) < HEADER_BYTES or not header.startswith(MAGIC):
            raise UntrustedError("the delta is no BSDIFF40 patch")
        control_length, difference_length, promised = (_number(header[at : at + 8]) for at in (8, 16, 24))
        if control_length < 0 or difference_length < 0 or HEADER_BYTES + control_length + difference_length > size:
            raise UntrustedError("the delta's header does not fit its length")
        if promised != length:
            raise UntrustedError(f"the delta makes {promised} bytes, expected {length}")
        starts = (HEADER_BYTES, HEADER_BYTES + control_length, HEADER_BYTES + control_length + difference_length)
        ends = (starts[1], starts[2], size)
        with patch.open("rb") as first, patch.open("rb") as second, patch.open("rb") as third:
            streams = [_Unpacked(file, start, end) for file, start, end in zip((first, second, third), starts, ends, strict=True)]
            _apply(source, *streams, new=new, length=length)


def _apply(source: BinaryIO, control: "_Unpacked", difference: "_Unpacked", extra: "_Unpacked", *, new: BinaryIO, length: int) -> None:
    old_length = os.fstat(source.fileno()).st_size
    written = position = 0
    while written < length:
        add, copy, seek = (_number(control.read(8)) for _ in range(3))
        if add < 0 or copy < 0 or add + copy > length - written or (add == 0 and copy == 0 and seek == 0):
            raise UntrustedError("the delta's control block makes no sense")
        _add(source, difference, new, position=position, count=add, old_length=old_length)
        _copy(extra, new, count=copy)
        written += add + copy
        position += add + seek


def _add(source: BinaryIO, difference: "_Unpacked", new: BinaryIO, *, position: int, count: int, old_length: int) -> None:
    while count:
        piece = difference.read(min(count, PIECE_BYTES))
        # As the format has it: outside of the old file there are zeros.
        start, end = max(position, 0), min(position + len(piece), old_length)
        old = bytearray(len(piece))
        if start < end:
            source.seek(start)
            old[start - position : end - position] = source.read(end - start)
        new.write(add_bytes(piece, bytes(old)))
        position += len(piece)
        count -= len(piece)


def _copy(extra: "_Unpacked", new: BinaryIO, *, count: int) -> None:
    while count:
        piece = extra.read(min(count, PIECE_BYTES))
        new.write(piece)
        count -= len(piece)


def add_bytes(left: bytes, right: bytes) -> bytes:
    """Each byte's sum modulo 256; both are equally long. Two big integers with room for the carries do a whole piece at once."""
    sums = bytearray(len(left))
    for lane in (0, 1):
        total = int.from_bytes(_every_other(left, lane), "little") + int.from_bytes(_every_other(right, lane), "little")
        width = (len(left) - lane + 1) // 2 * 2
        sums[lane::2] = total.to_bytes(width + 1, "little")[0:width:2]
    return bytes(sums)


def _every_other(data: bytes, lane: int) -> bytes:
    spread = bytearray((len(data) - lane + 1) // 2 * 2)
    spread[::2] = data[lane::2]
    return bytes(spread)


class _Unpacked:
    """One bzip2 stream within a file, unpacked no further than it is read."""

    def __init__(self, file: BinaryIO, start: int, end: int) -> None:
        self._file = file
        self._left = end - start
        self._unpacker = bz2.BZ2Decompressor()
        file.seek(start)

    def read(self, count: int) -> bytes:
        """Exactly so many bytes. Raises UntrustedError if the stream ends or is damaged."""
        parts: list[bytes] = []
        while count:
            piece = self._some(count)
            parts.append(piece)
            count -= len(piece)
        return b"".join(parts)

    def _some(self, most: int) -> bytes:
        while True:
            if self._unpacker.eof:
                raise UntrustedError("the delta ends too early")
            packed = b""
            if self._unpacker.needs_input:
                packed = self._file.read(min(self._left, PIECE_BYTES))
                self._left -= len(packed)
                if not packed:
                    raise UntrustedError("the delta ends too early")
            try:
                piece = self._unpacker.decompress(packed, most)
            except (OSError, ValueError) as exc:
                raise UntrustedError(f"the delta cannot be unpacked: {exc}") from exc
            if piece:
                return piece


def _number(data: bytes) -> int:
    value: int = _NUMBER.unpack(data)[0]
    return -(value & (_SIGN - 1)) if value & _SIGN else value
