"""A task's code: one Python file, loaded only when its sha256 is the one that was agreed to.

The digest is checked on the exact bytes that are then run. What the file must define is in `examples/digits/task.py`; clipping,
noise and accounting are not among it, so a task cannot switch them off.
"""

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from covey_agent.workers.errors import WorkerError
from covey_contract.codec import digest_of

_NEEDED = ("build_model", "load_data", "compute_loss")


class TaskCodeError(WorkerError):
    """A task bundle is not the one agreed to, or is not a task."""


@dataclass(frozen=True, slots=True)
class Task:
    """The parts of a task that training needs; types are the task's own business."""

    digest: str
    build_model: Callable[[], Any]
    load_data: Callable[[str], tuple[Any, Any]]
    compute_loss: Callable[[Any, Any, Any], Any]


def load_task(code: bytes, *, digest: str) -> Task:
    """Check and run a task bundle. Raises TaskCodeError."""
    if digest_of(code) != digest:
        raise TaskCodeError(f"the task bundle has sha256 {digest_of(code)}, the invitation names {digest}")
    module = ModuleType(f"covey_task_{digest[:12]}")
    try:
        exec(compile(code, f"<task {digest[:12]}>", "exec"), module.__dict__)  # noqa: S102 - these bytes are what the policy allows by digest
    except Exception as exc:
        raise TaskCodeError(f"the task bundle does not load: {type(exc).__name__}: {exc}") from exc
    missing = [name for name in _NEEDED if not callable(getattr(module, name, None))]
    if missing:
        raise TaskCodeError(f"the task bundle defines no {', '.join(missing)}")
    return Task(digest=digest, build_model=module.build_model, load_data=module.load_data, compute_loss=module.compute_loss)
