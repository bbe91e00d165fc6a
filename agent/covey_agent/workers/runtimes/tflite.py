"""tflite-runtime, for old devices. It answers some newer files with garbage and no error: trust only what passes its golden check."""

from importlib.metadata import version
from pathlib import Path

from tflite_runtime.interpreter import Interpreter

from covey_agent.workers.runtimes.interpreter import TfliteEngine
from covey_contract.release import TensorSpec


def runtime_version() -> str:
    """The installed version."""
    return version("tflite-runtime")


def list_providers() -> list[str]:
    """It has no choice to offer."""
    return []


def load_engine(path: Path, *, spec: TensorSpec, threads: int, provider: str) -> TfliteEngine:
    """Load a .tflite file; it has one input, so `spec`'s name is not needed. Raises ModelError."""
    del spec, provider
    return TfliteEngine(Interpreter, path, threads=threads)
