"""Contributions on disk, written before they are sent: a round is released at most once, whatever dies in between.

After a crash anywhere the same round may be asked for again. If its contribution is here, exactly the same bytes are sent again,
which costs no privacy; if it is not, nothing of that round ever left, and it may be trained under the charge already made.
"""

import os
import zipfile
from pathlib import Path

import numpy as np

from covey_agent.workers.errors import StorageError
from covey_agent.workers.training.weights import Weights

_KEPT = 2  # the newest rounds of a run; older ones are never sent again


class Contributions:
    """The contributions of one run, below `<state>/training/<run>/`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def find(self, number: int) -> tuple[str, Weights] | None:
        """The fingerprint of the weights that round `number` began from, and its contribution. Raises StorageError."""
        path = self._path(number)
        if not path.exists():
            return None
        try:
            with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
                change = {name.removeprefix("w:"): file[name] for name in file.files if name.startswith("w:")}
                return str(file["began_from"]), change
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as exc:
            raise StorageError(f"{path} cannot be read: {exc}") from exc

    def newest(self) -> int:
        """The newest round that is kept; 0 if there is none."""
        return max((int(path.stem.removeprefix("round-")) for path in self._folder.glob("round-*.npz")), default=0)

    def keep(self, number: int, *, began_from: str, change: Weights) -> None:
        """Write a contribution durably, by one rename. Raises StorageError."""
        path = self._path(number)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(".partial")
            with partial.open("wb") as file:
                arrays = {f"w:{name}": value for name, value in change.items()}
                np.savez(file, began_from=np.array(began_from), **arrays)  # type: ignore[arg-type]  # numpy takes arrays by any name
                file.flush()
                os.fsync(file.fileno())
            partial.rename(path)
            folder = os.open(self._folder, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
            for old in sorted(self._folder.glob("round-*.npz"))[:-_KEPT]:
                old.unlink()
        except OSError as exc:
            raise StorageError(f"{path} cannot be written: {exc}") from exc

    def _path(self, number: int) -> Path:
        return self._folder / f"round-{number:06d}.npz"
