"""What MODEL names: an ONNX file, a torch.export program, or a function in a Python file that builds a module.

Naming is decided here without loading anything; module.py loads the torch forms.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from covey_quantize.errors import ModelFileError, RequestError


@dataclass(frozen=True, slots=True)
class Source:
    """A model that was named, not yet loaded."""

    form: str  # "onnx", "pt2" or "factory"
    path: Path
    factory: str = ""
    weights: Path | None = None

    @property
    def sha256(self) -> str:
        """Of the model file followed by the weights, if any."""
        digest = hashlib.sha256(self.path.read_bytes())
        if self.weights is not None:
            digest.update(self.weights.read_bytes())
        return digest.hexdigest()


def parse_source(model: str, weights: str = "") -> Source:
    """Decide what `model` names. Raises ModelFileError or RequestError."""
    path_text, colon, factory = model.rpartition(":")
    if colon and path_text.endswith(".py"):
        if not factory.isidentifier():
            raise RequestError(f"expected path.py:function, got {model!r:.120}")
        return Source("factory", _existing(path_text), factory, _existing(weights) if weights else None)
    if weights:
        raise RequestError(f"weights belong to a model of the form path.py:function, got {model!r:.120}")
    form = {".onnx": "onnx", ".pt2": "pt2"}.get(Path(model).suffix)
    if form is None:
        raise ModelFileError(f"expected a .onnx file, a .pt2 file or path.py:function, got {model!r:.120}")
    return Source(form, _existing(model))


def _existing(path: str) -> Path:
    if not Path(path).is_file():
        raise ModelFileError(f"{path}: no such file")
    if Path(path).stat().st_size == 0:
        raise ModelFileError(f"{path}: the file is empty")
    return Path(path)
