"""Where pictures come from, and how they are made to fit a model.

A source yields `Frame`s for ever: of an .npz file, of a folder of pictures, or of a synthetic camera. A picture is numbers from 0 to 1,
[height, width] or [height, width, colours] or whatever the file holds; `fit` makes it what the model takes.
"""

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.float32]
_SUFFIXES = {".npy", ".pgm", ".ppm"}  # what can be read with numpy alone
_GAP = rb"(?:\s|#[^\n]*\n)+"  # comments may stand between the words
_NETPBM = re.compile(rb"(P[56])" + _GAP + rb"(\d+)" + _GAP + rb"(\d+)" + _GAP + rb"(\d+)\s")


@dataclass(frozen=True, slots=True)
class Frame:
    """A picture and, if known, what it shows."""

    picture: Picture
    truth: str | None = None


def from_npz(path: Path) -> Iterator[Frame]:
    """`x` float32 [n, ...] and, if known, `y` int64 [n]. Raises OSError, ValueError or LookupError at once."""
    file = np.load(path)
    x, y = file["x"], file.get("y")
    return itertools.cycle(Frame(picture, None if y is None else str(int(y[index]))) for index, picture in enumerate(x))


def from_folder(folder: Path) -> Iterator[Frame]:
    """Pictures `folder/*.npy|.pgm|.ppm`, or `folder/<label>/*` where what they show is known. Raises OSError or ValueError."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix in _SUFFIXES)
    if not paths:
        raise ValueError(f"expected pictures ({', '.join(sorted(_SUFFIXES))}) in {folder}, got none")
    return (Frame(read_picture(path), None if path.parent == folder else path.parent.name) for path in itertools.cycle(paths))


def synthetic(seed: int = 0) -> Iterator[Frame]:
    """A camera before which a bright spot wanders over noise: 96 x 96 pixels of three colours."""
    chance = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:96, 0:96]
    for step in itertools.count():
        row, column = 48 + 30 * np.sin(step / 7), 48 + 30 * np.cos(step / 11)
        spot = np.exp(-((rows - row) ** 2 + (columns - column) ** 2) / 200)
        noise = chance.random((96, 96, 3)) * 0.2
        yield Frame((0.8 * spot[..., None] * [1.0, 0.9, 0.6] + noise).clip(0, 1).astype(np.float32))


def read_picture(path: Path) -> Picture:
    """A .npy array, or a binary netpbm file, which nearly every camera tool can write. Raises OSError or ValueError."""
    if path.suffix == ".npy":
        return to_unit(np.load(path))
    data = path.read_bytes()
    magic, width, height, most, start = _netpbm_head(data)
    pixels = np.frombuffer(data[start:], "u1" if most < 256 else ">u2")
    shape = (height, width) if magic == b"P5" else (height, width, 3)
    return (pixels[: int(np.prod(shape))].reshape(shape) / most).astype(np.float32)


def to_unit(numbers: NDArray[Any]) -> Picture:
    """Bytes become 0 to 1; other numbers are taken as they are."""
    return (numbers / 255 if numbers.dtype == np.uint8 else numbers).astype(np.float32)


def fit(picture: Picture, shape: tuple[int, ...]) -> Picture:
    """What a model with samples of `shape` takes: [colours, height, width], [height, width, colours] or [height, width].

    Cuts the largest middle part of the right proportions, takes the nearest pixels, averages or repeats colours. A picture that has
    the shape already is left alone.
    """
    if picture.shape == shape:
        return picture
    if len(shape) not in (2, 3) or picture.ndim not in (2, 3):
        raise ValueError(f"a picture of shape {list(picture.shape)} cannot become {list(shape)}")
    first = len(shape) == 3 and shape[0] in (1, 3)  # colours come first, as in PyTorch
    height, width = shape[1:] if first else shape[:2]
    small = _scale(picture if picture.ndim == 3 else picture[..., None], height, width)
    colours = 1 if len(shape) == 2 else shape[0] if first else shape[2]
    if small.shape[2] != colours:
        small = np.repeat(small.mean(axis=2, keepdims=True), colours, axis=2)
    made = small.transpose(2, 0, 1) if first else small
    return np.ascontiguousarray(made.reshape(shape), np.float32)


def _scale(picture: Picture, height: int, width: int) -> Picture:
    share = min(picture.shape[0] / height, picture.shape[1] / width)
    rows = (np.arange(height) + 0.5 - height / 2) * share + picture.shape[0] / 2
    columns = (np.arange(width) + 0.5 - width / 2) * share + picture.shape[1] / 2
    return picture[np.ix_(rows.astype(int), columns.astype(int))]


def _netpbm_head(data: bytes) -> tuple[bytes, int, int, int, int]:
    """Magic, width, height, greatest value, and where the pixels begin."""
    head = _NETPBM.match(data)
    if head is None:
        raise ValueError(f"expected a binary netpbm file (P5 or P6), got {data[:10]!r}")
    return head[1], int(head[2]), int(head[3]), int(head[4]), head.end()
