"""Why a child's work did not succeed, grouped by what the agent should do about it."""

from covey_agent.errors import CoveyAgentError

_NO_MEMORY = ("bad_alloc", "bad allocation", "failed to allocate", "out of memory", "unable to allocate", "cannot allocate")


class WorkerError(CoveyAgentError):
    """Base of everything that a worker raises on purpose; its text is fit for an operator."""


class UntrustedError(WorkerError):
    """Metadata, an order or a target does not verify. Final: asking again cannot make it right."""


class NetworkError(WorkerError):
    """Broker or server did not answer. May be tried again later."""


class RefusedError(WorkerError):
    """A verified order must not be carried out on this device. Final.

    `artifact` is the digest that is the reason, if one is.
    """

    def __init__(self, message: str, *, artifact: str = "") -> None:
        super().__init__(message)
        self.artifact = artifact


class StorageError(WorkerError):
    """The disk refused: full, read-only, broken. May be tried again later."""


class ModelError(WorkerError):
    """The runtime cannot load or run the artifact."""

    @property
    def out_of_memory(self) -> bool:
        """Whether memory was what lacked; runtimes say so in words only."""
        return any(words in str(self).lower() for words in _NO_MEMORY)
