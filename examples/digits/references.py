"""What privacy costs: the same model without it, federated and centrally, measured on the same held-out digits.

Prints one JSON object, accuracy per round from round 0 (untrained):
    {"without-privacy": [...], "central": [...]}
Both take as many steps as the private run and samples at the same rate; `central` sees all shares in one place, which is just
what a federation is there to avoid.

    python examples/digits/references.py --data /tmp/digits --rounds 8 --plan '{"steps": 10, "sample_rate": 0.25}' \\
        --participants device-1 device-2 partner-1
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import task
import torch
from numpy.typing import NDArray

Share = tuple[NDArray[np.float32], NDArray[np.int64]]
LEARNING_RATE = 2.0  # the best found without noise; the private run's own would be unfair to these


def train_references(
    shares: Sequence[Share], held_out: Share, *, rounds: int, steps: int, sample_rate: float, seed: int
) -> dict[str, list[float]]:
    """Accuracy per round of both references."""
    torch.set_num_threads(1)
    shares, held_out = [_features(share) for share in shares], _features(held_out)
    everything = (np.concatenate([x for x, _ in shares]), np.concatenate([y for _, y in shares]))
    curves = {}
    for name, parts in (("without-privacy", shares), ("central", [everything])):
        curves[name] = _federated(parts, held_out, rounds=rounds, steps=steps, sample_rate=sample_rate, seed=seed)
    return curves


def _features(share: Share) -> Share:
    """What the fixed part of the model makes of a share: it never changes, so once is enough, and the rest is quick."""
    images, labels = share
    with torch.no_grad():
        parts = [task.Digits().features(torch.from_numpy(part)) for part in np.array_split(images, max(1, len(images) // 250))]
    return torch.cat(parts).numpy(), labels


def _federated(shares: Sequence[Share], held_out: Share, *, rounds: int, steps: int, sample_rate: float, seed: int) -> list[float]:
    model = task.Digits().classify  # all that is trained
    state = {name: value.clone() for name, value in model.state_dict().items()}
    accuracies = [task.evaluate(model, *held_out)[0]]
    for number in range(rounds):
        states = []
        for index, (x, y) in enumerate(shares):
            model.load_state_dict(state)
            chance = seed + 1000 * number + index
            task.train(model, x, y, steps=steps, sample_rate=sample_rate, learning_rate=LEARNING_RATE, seed=chance)
            states.append({name: value.clone() for name, value in model.state_dict().items()})
        state = {name: torch.stack([each[name] for each in states]).mean(0) for name in state}  # equal weights, as in the run
        model.load_state_dict(state)
        accuracies.append(task.evaluate(model, *held_out)[0])
    return accuracies


def main() -> None:
    """Train both and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder that shares.py wrote")
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--plan", type=json.loads, default={}, help="JSON with steps and sample_rate; other fields are ignored")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--participants", nargs="+", required=True, metavar="NAME")
    args = parser.parse_args()
    plan: dict[str, Any] = args.plan
    found = train_references(
        [task.load_data(str(args.data / f"{name}.npz")) for name in args.participants],
        task.load_data(str(args.data / "held-out.npz")),
        rounds=args.rounds,
        steps=int(plan.get("steps", 10)),
        sample_rate=float(plan.get("sample_rate", 0.25)),
        seed=args.seed,
    )
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
