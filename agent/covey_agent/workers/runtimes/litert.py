"""LiteRT (`ai-edge-litert`), the maintained runtime of .tflite files."""

from functools import partial
from importlib.metadata import version
from pathlib import Path

from ai_edge_litert.interpreter import Interpreter, OpResolverType

from covey_agent.workers.runtimes.interpreter import TfliteEngine
from covey_contract.release import TensorSpec

_BUILTIN = "builtin"


def runtime_version() -> str:
    """The installed version."""
    return version("ai-edge-litert")


def list_providers() -> list[str]:
    """XNNPACK is what it takes by itself; its built-in kernels are sometimes faster for small integer models."""
    return ["XNNPACK", _BUILTIN]


def load_engine(path: Path, *, spec: TensorSpec, threads: int, provider: str) -> TfliteEngine:
    """Load a .tflite file; it has one input, so `spec`'s name is not needed. Raises ModelError."""
    del spec
    plain = {"experimental_op_resolver_type": OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES} if provider == _BUILTIN else {}
    return TfliteEngine(partial(Interpreter, **plain), path, threads=threads)
