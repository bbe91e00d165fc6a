"""What LiteRT and tflite-runtime have in common: an Interpreter with the same methods."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from covey_agent.workers.errors import ModelError
from covey_agent.workers.runtimes.engine import Tensor

# What their bindings raise: a bad file, a missing or refused operator, a wrong shape, a binding built for another numpy.
_ERRORS = (ValueError, RuntimeError, TypeError, ImportError, SystemError, MemoryError)


class TfliteEngine:
    """One interpreter with its tensors allocated."""

    def __init__(self, interpreter: Callable[..., Any], path: Path, *, threads: int) -> None:
        try:
            self._interpreter = interpreter(model_path=str(path), num_threads=threads)
            self._interpreter.allocate_tensors()
            source, sink = self._interpreter.get_input_details(), self._interpreter.get_output_details()
        except _ERRORS as exc:
            raise ModelError(f"the interpreter cannot load {path.name}: {exc or 'out of memory'}") from exc
        if len(source) != 1:
            raise ModelError(f"the model has {len(source)} inputs, expected 1")
        self._input, self._output = source[0]["index"], sink[0]["index"]
        self._shape = tuple(int(size) for size in source[0]["shape"])

    def invoke(self, tensor: Tensor) -> Tensor:
        """See Engine."""
        try:
            if tensor.shape != self._shape:
                self._interpreter.resize_tensor_input(self._input, tensor.shape)
                self._interpreter.allocate_tensors()
                self._shape = tensor.shape
            self._interpreter.set_tensor(self._input, tensor)
            self._interpreter.invoke()
            output: Tensor = self._interpreter.get_tensor(self._output)
        except _ERRORS as exc:
            raise ModelError(f"the interpreter cannot run the model: {exc or 'out of memory'}") from exc
        return output
