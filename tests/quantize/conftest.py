"""A trained model and its data as files, as a user has them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

MODELS = Path(__file__).with_name("digits_models.py")


@dataclass(frozen=True, slots=True)
class DigitFiles:
    """Paths, as strings for a command line."""

    cnn: str  # path.py:function
    cnn_weights: str
    mlp_program: str  # .pt2
    gru: str
    calibration: str
    held_out: str


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> DigitFiles:
    """A CNN and an MLP that were trained on real digits, and the digits that they have not seen."""
    import torch
    from safetensors.torch import save_file
    from sklearn.datasets import load_digits
    from tests.quantize.digits_models import build_cnn, build_mlp

    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("digits")
    bunch = load_digits()
    order = np.random.default_rng(0).permutation(len(bunch.target))
    x = (bunch.images[order, None] / 16).astype(np.float32)
    y = bunch.target[order].astype(np.int64)
    np.savez(folder / "calibration.npz", x=x[:200], y=y[:200])
    np.savez(folder / "held_out.npz", x=x[200:600], y=y[200:600])
    train = torch.from_numpy(x[600:]), torch.from_numpy(y[600:])
    torch.manual_seed(0)
    cnn, mlp = build_cnn(), build_mlp()
    for model in (cnn, mlp):
        _train(model, *train)
    save_file(cnn.state_dict(), folder / "cnn.safetensors")
    batch = torch.export.Dim("batch", min=1, max=1024)
    program = torch.export.export(mlp.eval(), (train[0][:2],), dynamic_shapes=({0: batch},))
    torch.export.save(program, folder / "mlp.pt2")
    return DigitFiles(
        cnn=f"{MODELS}:build_cnn",
        cnn_weights=str(folder / "cnn.safetensors"),
        mlp_program=str(folder / "mlp.pt2"),
        gru=f"{MODELS}:build_gru",
        calibration=str(folder / "calibration.npz"),
        held_out=str(folder / "held_out.npz"),
    )


def _train(model: Any, x: Any, y: Any, *, epochs: int = 6) -> None:
    import torch

    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(epochs):
        order: Any = torch.randperm(len(x))
        for part in order.split(64):
            optimizer.zero_grad()
            loss: Any = torch.nn.functional.cross_entropy(model(x[part]), y[part])
            loss.backward()
            optimizer.step()
