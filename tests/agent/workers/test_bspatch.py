"""The patcher, against patches that bsdiff4 makes, and against patches that somebody has been at."""

import bz2
import io
import random
import struct
from pathlib import Path

import bsdiff4
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from covey_agent.workers.bspatch import add_bytes, apply_patch
from covey_agent.workers.errors import UntrustedError


def patched(folder: Path, old: bytes, patch: bytes, length: int) -> bytes:
    """What the patcher makes of it."""
    (folder / "old").write_bytes(old)
    (folder / "patch").write_bytes(patch)
    new = io.BytesIO()
    apply_patch(folder / "old", folder / "patch", new, length=length)
    return new.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("patch")


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=3000), st.binary(max_size=3000), st.integers(0, 3000))
def test_it_makes_what_bsdiff_meant(folder: Path, old: bytes, other: bytes, cut: int) -> None:
    new = old[cut:] + other + old[:cut]
    assert patched(folder, old, bsdiff4.diff(old, new), len(new)) == new


def test_files_longer_than_a_piece_with_every_weight_moved_a_little(folder: Path) -> None:
    chance = random.Random(1)
    old = chance.randbytes(400_000)
    new = bytes((byte + chance.choice((0, 0, 0, 1, 255))) % 256 for byte in old) + b"tail"
    patch = bsdiff4.diff(old, new)
    assert len(patch) < len(new) / 2
    assert patched(folder, old, patch, len(new)) == new


@given(st.integers(0, 300), st.randoms())
def test_bytes_are_added_modulo_256(length: int, chance: random.Random) -> None:
    left, right = chance.randbytes(length), chance.randbytes(length)
    assert add_bytes(left, right) == bytes((a + b) % 256 for a, b in zip(left, right, strict=True))


def number(value: int) -> bytes:
    """As the format writes one."""
    return struct.pack("<Q", -value | 1 << 63 if value < 0 else value)


def hand_made(control: list[int], difference: bytes = b"", extra: bytes = b"", *, length: int) -> bytes:
    """A patch from its parts."""
    blocks = [bz2.compress(b"".join(number(value) for value in control)), bz2.compress(difference), bz2.compress(extra)]
    return b"BSDIFF40" + number(len(blocks[0])) + number(len(blocks[1])) + number(length) + b"".join(blocks)


OLD, NEW = b"the old model" * 50, b"the new model" * 50
GOOD = bsdiff4.diff(OLD, NEW)


def test_outside_of_the_old_file_there_are_zeros(folder: Path) -> None:
    assert patched(folder, b"abc", hand_made([0, 0, -2, 6, 0, 0], b"\x01" * 6, length=6), 6) == b"\x01\x01bcd\x01"


@pytest.mark.parametrize(
    "patch",
    [
        b"",
        b"BSDIFF40",
        b"BSDIFF41" + GOOD[8:],
        GOOD[:40],
        GOOD[:-20],
        GOOD[:8] + number(-5) + GOOD[16:],
        GOOD[:8] + number(10**12) + GOOD[16:],
        GOOD[:24] + number(len(NEW) + 1) + GOOD[32:],
        GOOD[:40] + bytes(40) + GOOD[80:],
        hand_made([len(NEW) + 1, 0, 0], b"x" * 2000, length=len(NEW)),
        hand_made([-1, 5, 0], b"x", b"y" * 5, length=len(NEW)),
        hand_made([0, 0, 0], length=len(NEW)),
        hand_made([10, 0, 0], b"short", length=len(NEW)),
        hand_made([], length=len(NEW)),
    ],
    ids=["empty", "magic only", "other magic", "cut in control", "cut at end", "negative length", "huge length", "other result",
         "garbled", "too much", "negative add", "stands still", "difference too short", "no control"],
)  # fmt: skip
def test_a_damaged_or_hostile_patch_is_refused(folder: Path, patch: bytes) -> None:
    with pytest.raises(UntrustedError):
        patched(folder, OLD, patch, len(NEW))


def test_a_bomb_unpacks_no_further_than_the_length_that_is_expected(folder: Path) -> None:
    bomb = hand_made([0, 10**9, 0], b"", bytes(50_000_000), length=len(NEW))
    with pytest.raises(UntrustedError, match="control"):
        patched(folder, OLD, bomb, len(NEW))


@settings(max_examples=80, deadline=None)
@given(st.integers(0, len(GOOD) - 1), st.integers(1, 255))
def test_any_changed_byte_is_noticed_or_makes_another_file_of_the_same_length(folder: Path, at: int, change: int) -> None:
    spoiled = bytearray(GOOD)
    spoiled[at] = (spoiled[at] + change) % 256
    try:
        result = patched(folder, OLD, bytes(spoiled), len(NEW))
    except UntrustedError:
        return
    assert len(result) == len(NEW)
