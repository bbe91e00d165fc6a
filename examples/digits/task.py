"""The digits task: what participants train, in one file that needs only torch and numpy.

A task bundle is exactly one Python file; participants run it only where their policy allows its sha256. Covey's trainer looks
for these names and does clipping, noise and accounting itself, so a task cannot weaken them:

    LABELS, INPUT_SHAPE                 what the model answers and takes
    build_model() -> Module             parameters with requires_grad are trained and travel; the rest is fixed
    load_data(path) -> (x, y)           a participant's own share
    compute_loss(model, x, y)           mean loss of one batch, differentiable; no BatchNorm anywhere (it mixes records)
    evaluate(model, x, y)               (accuracy, mean loss)
    train(model, x, y, ...)             the same without privacy, for comparison only

The model: oriented-edge filters, twice, that were designed and not learned from any data, then one trained linear layer.
Learning with noise needs good features more than deep ones (Tramer and Boneh, "Differentially Private Learning Needs Better
Features", ICLR 2021): with 4 000 images, noise would drown what a deep network has to learn about edges.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

LABELS = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]
INPUT_SHAPE = (1, 28, 28)  # float32, 0 (paper) to 1 (ink)
_ORIENTATIONS = 8
_CHANNELS = _ORIENTATIONS * (1 + _ORIENTATIONS)  # each first edge as it is, and its own edges in every orientation
_FEATURES = _CHANNELS * 7 * 7
_FEATURE_SCALE = 1.15  # brings a typical image's features to a length of about 4, so that the bias neither rules nor vanishes


class Digits(nn.Module):
    """Fixed edge detectors and a trained linear layer: Conv, ReLU, AvgPool, Linear only, so that it quantizes to int8 well."""

    def __init__(self) -> None:
        super().__init__()
        self.edges = _fixed_conv(_oriented_filters(_ORIENTATIONS, size=5, sigma=1.2)[:, None], padding=2)
        self.corners = _fixed_conv(_second_order_filters(), padding=1)
        self.centre = _fixed_conv(_FEATURE_SCALE * _without_mean(_CHANNELS)[:, :, None, None], padding=0)
        self.classify = nn.Linear(_FEATURES, len(LABELS))
        nn.init.zeros_(self.classify.weight)  # every participant and every restart begins alike
        nn.init.zeros_(self.classify.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Logits float32[n, 10] of images float32[n, 1, 28, 28]."""
        logits: Tensor = self.classify(self.features(images))
        return logits

    def features(self, images: Tensor) -> Tensor:
        """The fixed part: float32[n, 3528]."""
        x = functional.avg_pool2d(functional.relu(self.edges(images)), 2)
        x = functional.avg_pool2d(functional.relu(self.corners(x)), 2)
        return torch.flatten(self.centre(x), 1)


def build_model() -> nn.Module:
    """The untrained model."""
    return Digits()


def load_data(path: str) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Images float32[n, 1, 28, 28] and classes int64[n] of one share. Raises ValueError if the file holds something else."""
    with np.load(path, allow_pickle=False) as file:
        x, y = np.asarray(file["x"], dtype=np.float32), np.asarray(file["y"], dtype=np.int64)
    if x.ndim != 4 or x.shape[1:] != INPUT_SHAPE or y.shape != (len(x),):
        raise ValueError(f"expected x[n, 1, 28, 28] and y[n], got {x.shape} and {y.shape}")
    if len(x) and (x.min() < 0 or x.max() > 1 or y.min() < 0 or y.max() >= len(LABELS)):
        raise ValueError("expected images within 0..1 and classes within 0..9")
    return x, y


def compute_loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Mean cross-entropy of one batch."""
    return functional.cross_entropy(model(x), y)


def evaluate(model: nn.Module, x: NDArray[np.float32], y: NDArray[np.int64]) -> tuple[float, float]:
    """Accuracy and mean loss on held-out data."""
    model.eval()
    with torch.no_grad():
        logits = torch.cat([model(torch.from_numpy(part)) for part in np.array_split(x, max(1, len(x) // 250))])
        target = torch.from_numpy(y)
        return float((logits.argmax(1) == target).float().mean()), float(functional.cross_entropy(logits, target))


def train(
    model: nn.Module, x: NDArray[np.float32], y: NDArray[np.int64], *, steps: int, sample_rate: float, learning_rate: float, seed: int
) -> None:
    """Train in place without any privacy: for the comparison that shows what privacy costs, never at a participant."""
    chance = np.random.default_rng(seed)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=learning_rate)
    model.train()
    for _ in range(steps):
        batch = np.flatnonzero(chance.random(len(x)) < sample_rate)
        if len(batch) == 0:
            continue
        optimizer.zero_grad()
        compute_loss(model, torch.from_numpy(x[batch]), torch.from_numpy(y[batch])).backward()  # type: ignore[no-untyped-call]  # torch has no type for it
        optimizer.step()


def _fixed_conv(weight: Tensor, *, padding: int) -> nn.Conv2d:
    out_channels, in_channels, size, _ = weight.shape
    conv = nn.Conv2d(in_channels, out_channels, size, padding=padding, bias=False)
    conv.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
    return conv


def _oriented_filters(count: int, *, size: int, sigma: float) -> Tensor:
    """[count, size, size]: first derivatives of a Gaussian in `count` directions, without response to flat areas."""
    axis = torch.arange(size) - (size - 1) / 2
    rows, columns = torch.meshgrid(axis, axis, indexing="ij")
    filters = []
    for index in range(count):
        angle = 2 * math.pi * index / count
        along = columns * math.cos(angle) + rows * math.sin(angle)
        edge = along * torch.exp(-(rows**2 + columns**2) / (2 * sigma**2))
        edge = edge - edge.mean()
        filters.append(2 * edge / edge.abs().sum())
    return torch.stack(filters)


def _second_order_filters() -> Tensor:
    """[channels, orientations, 3, 3]: of every first edge, less the mean of all, itself and its own oriented edges."""
    centre_only = torch.zeros(1, 3, 3)
    centre_only[0, 1, 1] = 1
    bank = torch.cat([centre_only, _oriented_filters(_ORIENTATIONS, size=3, sigma=1.0)])
    return torch.einsum("ij,brc->ibjrc", _without_mean(_ORIENTATIONS), bank).reshape(_CHANNELS, _ORIENTATIONS, 3, 3)


def _without_mean(size: int) -> Tensor:
    """[size, size]: subtracts the mean over channels, a fixed stand-in for the normalisation that would look at data."""
    return torch.eye(size) - torch.full((size, size), 1 / size)
