"""What can go wrong, grouped by whose fault it is; `exit_code` is the command's and stands in its --help.

2: the input (the caller can fix it). 4: a tool or child process failed on input that looked right.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from covey_contract.limits import MAX_REASON_CHARS


class QuantizeError(Exception):
    """Base of every error that this package raises on purpose."""

    exit_code = 4


class BadInputError(QuantizeError):
    """What the caller gave cannot be used."""

    exit_code = 2


class RequestError(BadInputError):
    """A setting is out of range or unknown."""


class UnknownVariantError(RequestError):
    """A variant name that does not exist."""

    def __init__(self, name: str, known: tuple[str, ...]) -> None:
        super().__init__(f"unknown variant {name!r:.80}; expected one of {', '.join(known)}")
        self.name = name


class ModelFileError(BadInputError):
    """The model is missing, damaged, not a model, or of a form that Covey cannot ship."""


class ModelCrashError(ModelFileError):
    """The float model kills or hangs the runtime that would have to run it."""


class DatasetError(BadInputError):
    """Calibration or held-out data are missing, damaged, or do not fit the model."""


class OutputDirectoryError(BadInputError):
    """The output directory cannot be written, or holds something that is not ours to replace."""


class ExportError(QuantizeError):
    """No exporter could turn the model into ONNX."""


class ConversionError(QuantizeError):
    """One variant could not be made; the others may still be."""


class ChildFailedError(QuantizeError):
    """A child process ended without a result: by a signal, a limit, or an error of its own."""

    def __init__(self, what: str, reason: str) -> None:
        super().__init__(f"{what} {reason}")
        self.reason = reason


def first_line(text: str) -> str:
    """A third-party message made fit for a report: its first line with content, bounded."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return (lines[0] if lines else "no message")[:MAX_REASON_CHARS]


@contextmanager
def translate(error: type[QuantizeError], what: str) -> Iterator[None]:
    """Turn whatever foreign code raises into one of ours: `with translate(ExportError, "ONNX export"): ...`.

    Exporters, quantizers and a user's own model file raise every class there is, AssertionError included, so this one place
    catches them all.
    """
    try:
        yield
    except QuantizeError:
        raise
    except Exception as exc:
        raise error(f"{what}: {type(exc).__name__}: {first_line(str(exc))}") from exc
