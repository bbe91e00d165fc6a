"""The task's own code at the server: the untrained model, and how good a state of it is on held-out data.

The code was uploaded by an operator; the server runs it as it runs any model that it quantizes. torch is imported by the task.
"""

from types import ModuleType
from typing import Any

import numpy as np

from covey_server.errors import InvalidInputError
from covey_server.federation.weights import State


class TaskJudge:
    """Judge by the task's own `build_model`, `load_data` and `evaluate`."""

    def __init__(self, code: bytes, *, name: str, held_out: str) -> None:
        self._task = ModuleType(f"covey_task_{name.replace('-', '_')}")
        try:
            exec(compile(code, f"<task {name}>", "exec"), self._task.__dict__)  # noqa: S102 - an operator's own code, by digest
            self._model: Any = self._task.build_model()
        except Exception as exc:
            raise InvalidInputError(f"the task {name} does not build a model: {type(exc).__name__}: {exc}") from exc
        self._held_out: tuple[Any, Any] | None = self._load(held_out) if held_out else None

    def first_state(self) -> State:
        """A fresh model's state."""
        return {name: value.detach().numpy().copy() for name, value in self._task.build_model().state_dict().items()}

    def trained_names(self, state: State) -> list[str]:
        """Parameters that require gradients."""
        names = [name for name, parameter in self._model.named_parameters() if parameter.requires_grad]
        missing = sorted(set(names) - set(state))
        if missing:
            raise InvalidInputError(f"the checkpoint lacks {', '.join(missing)}")
        return names

    def measure(self, state: State) -> tuple[float, float] | None:
        """(accuracy, mean loss) on the held-out data."""
        if self._held_out is None or not hasattr(self._task, "evaluate"):
            return None
        import torch  # noqa: PLC0415 - the task has imported it already

        self._model.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in state.items()})
        accuracy, loss = self._task.evaluate(self._model, *self._held_out)
        return float(accuracy), float(loss)

    def _load(self, path: str) -> tuple[Any, Any]:
        try:
            x, y = self._task.load_data(path)
        except (OSError, ValueError, KeyError) as exc:
            raise InvalidInputError(f"the held-out data do not suit the task: {exc}") from exc
        return x, y
