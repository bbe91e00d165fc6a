"""Small torch models for 8 x 8 handwritten digits; the command under test loads them from this file by name."""

import torch
from torch import Tensor, nn


def build_cnn() -> nn.Module:
    """Two convolutions with batch normalisation and a classifier: about 30 000 parameters."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(512, 48),
        nn.ReLU(),
        nn.Linear(48, 10),
    )


def build_mlp() -> nn.Module:
    """Three linear layers."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))


class Gru(nn.Module):
    """Reads an image row by row."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.GRU(8, 64, batch_first=True)
        self.classify = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of images float32[n, 1, 8, 8]."""
        states, _ = self.rows(images.squeeze(1))
        logits: Tensor = self.classify(states[:, -1])
        return logits


def build_gru() -> nn.Module:
    """A recurrent model with seeded weights."""
    torch.manual_seed(0)
    return Gru()


def build_number() -> int:
    """Not a model."""
    return 3
