"""The output directory appears whole or not at all: everything is written beside it and takes its place by rename."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from covey_quantize.errors import OutputDirectoryError
from covey_quantize.report import REPORT_FILE


def check_output(out: Path) -> None:
    """Refuse early what could not be written or is not ours to replace. Raises OutputDirectoryError."""
    if out.exists() and not out.is_dir():
        raise OutputDirectoryError(f"{out}: expected a directory, got a file")
    if out.is_dir() and any(out.iterdir()) and not (out / REPORT_FILE).is_file():
        raise OutputDirectoryError(f"{out}: not empty and without {REPORT_FILE}, so it is not an earlier result and stays as it is")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise OutputDirectoryError(f"{out}: its parent cannot be made: {exc}") from exc


@contextmanager
def scratch_beside(out: Path) -> Iterator[Path]:
    """A working directory on the same file system as `out`, removed in the end."""
    try:
        scratch = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.resolve().parent))
    except OSError as exc:
        raise OutputDirectoryError(f"{out}: cannot write beside it: {exc}") from exc
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def publish(files: dict[str, Path], report: bytes, out: Path, scratch: Path) -> None:
    """Put `files` (name -> where it is now) and the report at `out` in one rename; an earlier result goes with it."""
    staged = scratch / "staged"
    staged.mkdir()
    for name, path in files.items():
        shutil.copyfile(path, staged / name)
    (staged / REPORT_FILE).write_bytes(report)
    staged.chmod(0o755)
    try:
        if out.exists():
            out.rename(scratch / "replaced")
        staged.rename(out)
    except OSError as exc:
        raise OutputDirectoryError(f"{out}: the result could not be put in place: {exc}") from exc
