"""ONNX Runtime, by the execution provider that was measured to be the fastest here, or on the CPU."""

from pathlib import Path

import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as native

from covey_agent.workers.errors import ModelError
from covey_agent.workers.runtimes.engine import Tensor
from covey_contract.release import TensorSpec

# Its exceptions have no base of their own.
_ERRORS: tuple[type[Exception], ...] = (
    RuntimeError,
    ValueError,
    MemoryError,
    *(kind for kind in vars(native).values() if isinstance(kind, type) and issubclass(kind, Exception)),
)
_CPU = "CPUExecutionProvider"
_REMOTE = frozenset({"AzureExecutionProvider"})  # asks a service elsewhere, which is never what a device wants
_QUIET = 4  # its own logging: fatal only; what matters is raised


def runtime_version() -> str:
    """The installed version."""
    return str(onnxruntime.__version__)


class OnnxEngine:
    """One session."""

    def __init__(self, path: Path, *, spec: TensorSpec, threads: int, provider: str = "") -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = _QUIET
        # Spinning threads would burn a device's battery between requests.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # The arena grows in powers of two and never shrinks: a single big batch would be paid for in memory for ever.
        options.enable_cpu_mem_arena = False
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=list(dict.fromkeys((provider or _CPU, _CPU))))
        except _ERRORS as exc:
            raise ModelError(f"onnxruntime cannot load {path.name}: {exc or 'out of memory'}") from exc
        inputs = [given.name for given in self._session.get_inputs()]
        if inputs != [spec.name]:
            raise ModelError(f"the model's inputs are {inputs}, the manifest says [{spec.name!r}]")
        if provider and provider not in self._session.get_providers():
            raise ModelError(f"onnxruntime runs this without {provider}")  # it falls back in silence
        self._input = spec.name
        self._output = [self._session.get_outputs()[0].name]

    def invoke(self, tensor: Tensor) -> Tensor:
        """See Engine."""
        try:
            output: Tensor = self._session.run(self._output, {self._input: tensor})[0]
        except _ERRORS as exc:
            raise ModelError(f"onnxruntime cannot run the model: {exc or 'out of memory'}") from exc
        return output


def list_providers() -> list[str]:
    """What this build has."""
    found = [provider for provider in onnxruntime.get_available_providers() if provider not in _REMOTE]
    return sorted(found, key=lambda provider: provider != _CPU)


def load_engine(path: Path, *, spec: TensorSpec, threads: int, provider: str) -> OnnxEngine:
    """Load an .onnx file. Raises ModelError."""
    return OnnxEngine(path, spec=spec, threads=threads, provider=provider)
