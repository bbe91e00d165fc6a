"""What a power cut may do beyond a kill: the disk loses what was written and not synced."""

from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from tests.faults.shim import Call


class Damage(Enum):
    """How the newest file that has unsynced bytes is found after the power is back."""

    NONE = "as written"
    TRUNCATED = "unsynced tail cut"  # half of what was appended is missing
    GARBLED = "unsynced bytes garbled"


@dataclass
class _File:
    """What is known of one file's bytes."""

    kept: int = 0  # it is at least so long for certain
    pending: list[tuple[int, int]] = field(default_factory=list)  # (offset, length) written since the last sync


def damage_unsynced(folder: Path, calls: list[Call], damage: Damage, *, before: Path) -> list[str]:
    """Damage the file that was written last and not synced since. `before`: the folder as it was at the start. Says what was done."""
    if damage is Damage.NONE:
        return []
    for path, state in reversed(_follow(calls, before).items()):
        file = folder / path
        if state.pending and file.is_file() and "#" not in path:
            size = file.stat().st_size
            if damage is Damage.TRUNCATED and size > state.kept:
                with file.open("r+b") as handle:
                    handle.truncate(state.kept + (size - state.kept) // 2)
                return [f"{path} cut from {size} to {state.kept + (size - state.kept) // 2}"]
            if damage is Damage.GARBLED:
                with file.open("r+b") as handle:
                    for start, length in state.pending:
                        handle.seek(start)
                        handle.write(b"\xa5" * max(0, min(length, size - start)))
                return [f"{path} garbled in {len(state.pending)} places"]
    return []


def _follow(calls: list[Call], before: Path) -> dict[str, _File]:
    """Every file that was written, the one written last at the end."""
    files: dict[str, _File] = {}
    source = ""

    def of(path: str) -> _File:
        known = files.pop(path, None)
        if known is None:
            known = _File(kept=(before / path).stat().st_size if (before / path).is_file() else 0)
        files[path] = known
        return known

    for call in calls:
        match call.call:
            case "write" | "pwrite" | "sendfile":
                of(call.path).pending.append((call.offset, call.length))
            case "fsync" | "fdatasync":
                file = files.get(call.path)
                if file is not None:
                    file.kept = max([file.kept, *(start + length for start, length in file.pending)])
                    file.pending = []
            case "ftruncate":
                of(call.path).kept = min(of(call.path).kept, call.offset)
            case "create" | "truncate" | "unlink":
                files[call.path] = _File()
            case "from":
                source = call.path
            case "rename" if source in files:
                files[call.path] = files.pop(source)
            case _:
                pass
    return files
