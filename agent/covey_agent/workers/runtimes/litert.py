"""LiteRT (`ai-edge-litert`), the maintained runtime of .tflite files."""

from importlib.metadata import version
from pathlib import Path

from ai_edge_litert.interpreter import Interpreter

from covey_agent.workers.runtimes.interpreter import TfliteEngine
from covey_contract.release import TensorSpec


def runtime_version() -> str:
    """The installed version."""
    return version("ai-edge-litert")


def load_engine(path: Path, *, spec: TensorSpec, threads: int) -> TfliteEngine:
    """Load a .tflite file; it has one input, so `spec`'s name is not needed. Raises ModelError."""
    del spec
    return TfliteEngine(Interpreter, path, threads=threads)
