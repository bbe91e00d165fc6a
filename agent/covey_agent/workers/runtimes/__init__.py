"""The libraries that run artifacts, one adapter each, behind one small Protocol (`engine.py`).

    model = load_model(path, variant, threads=1)
    outputs = model.run(inputs)  # float32[n, ...] both, whatever the variant's own types are

Only the module of the variant's runtime is imported, so a worker carries exactly one runtime.
"""

import importlib
from pathlib import Path
from typing import Protocol, cast

from covey_agent.workers.errors import ModelError
from covey_agent.workers.runtimes.engine import Engine, VariantModel
from covey_contract.release import Runtime, TensorSpec, Variant

_ADAPTERS = {
    Runtime.ONNXRUNTIME: "covey_agent.workers.runtimes.onnx",
    Runtime.LITERT: "covey_agent.workers.runtimes.litert",
    Runtime.TFLITE_RUNTIME: "covey_agent.workers.runtimes.tflite",
}


class _Adapter(Protocol):
    """What every adapter module offers."""

    def load_engine(self, path: Path, *, spec: TensorSpec, threads: int, provider: str) -> Engine: ...

    def runtime_version(self) -> str: ...

    def list_providers(self) -> list[str]: ...


def load_model(path: Path, variant: Variant, *, threads: int, provider: str = "") -> VariantModel:
    """Load an artifact with the runtime that its variant names, by an execution provider or the default one. Raises ModelError."""
    engine = _adapter(variant.needs.runtime).load_engine(path, spec=variant.input, threads=threads, provider=provider)
    return VariantModel(engine, variant.input, variant.output)


def runtime_version(runtime: Runtime) -> str:
    """The installed version. Raises ModelError if the runtime cannot be imported."""
    return _adapter(runtime).runtime_version()


def list_providers(runtime: Runtime) -> list[str]:
    """Execution providers that the runtime says it has, its default first; whether they compute here must be tried. Raises ModelError."""
    return _adapter(runtime).list_providers()


def _adapter(runtime: Runtime) -> _Adapter:
    try:
        return cast("_Adapter", importlib.import_module(_ADAPTERS[runtime]))
    except ImportError as exc:
        raise ModelError(f"{runtime.value} is not usable here: {exc}") from exc
