"""Loading the torch forms of a model: a torch.export program, or a function in a Python file that builds a module.

Both can run code of their own when they are loaded (pickled weights, module level), so quantize only what you would run; the
ONNX form is parsed as data. Importing this file imports torch, which takes seconds, so only what needs torch imports it.
"""

import hashlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from torch.export import ExportedProgram

from covey_quantize.errors import ModelFileError, translate
from covey_quantize.quiet import quiet
from covey_quantize.source import Source


def load_program(source: Source) -> ExportedProgram:
    """Read a .pt2 file written by torch.export.save."""
    with translate(ModelFileError, f"{source.path}: expected a program saved by torch.export.save"), quiet():
        return torch.export.load(source.path)


def load_module(source: Source) -> nn.Module:
    """The torch module that `source` (pt2 or factory) names, in evaluation mode, on the CPU."""
    if source.form == "pt2":
        with translate(ModelFileError, f"{source.path}: the program cannot be run"):
            return load_program(source).module()
    return _built_module(source)


def _built_module(source: Source) -> nn.Module:
    factory = getattr(_imported(source.path), source.factory, None)
    if not callable(factory):
        raise ModelFileError(f"{source.path}: expected a function {source.factory!r} that returns a torch module, found none")
    with translate(ModelFileError, f"{source.path}:{source.factory}() failed"):
        module = factory()
    if not isinstance(module, nn.Module):
        raise ModelFileError(f"{source.path}:{source.factory}() must return a torch.nn.Module, got {type(module).__name__}")
    if source.weights is not None:
        _load_weights(module, source.weights)
    return module.to("cpu").eval()


def _load_weights(module: nn.Module, path: Path) -> None:
    with translate(ModelFileError, f"{path}: expected a .safetensors file"):
        state = load_file(path)
    have, want = set(state), set(module.state_dict())
    if have != want:
        raise ModelFileError(f"{path}: weights do not fit the module: missing {_some(want - have)}, unexpected {_some(have - want)}")
    with translate(ModelFileError, f"{path}: weights do not fit the module"):
        module.load_state_dict(state)


def _imported(path: Path) -> Any:
    name = "_covey_model_" + hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ModelFileError(f"{path}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickling inside the file look themselves up
    with translate(ModelFileError, f"{path}: importing it failed"):
        spec.loader.exec_module(module)
    return module


def _some(names: set[str]) -> str:
    shown = sorted(names)[:4]
    return (", ".join(shown) + (", ..." if len(names) > len(shown) else "")) if names else "none"
