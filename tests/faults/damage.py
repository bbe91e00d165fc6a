"""What a power cut may do beyond a kill: the disk loses what was written and not synced."""

from enum import Enum
from pathlib import Path

from tests.faults.shim import Call


class Damage(Enum):
    """How the newest file that has unsynced bytes is found after the power is back."""

    NONE = "as written"
    TRUNCATED = "unsynced tail cut"  # half of what was appended is missing
    GARBLED = "unsynced bytes garbled"


def damage_unsynced(folder: Path, calls: list[Call], damage: Damage) -> list[str]:
    """Damage the file that was written last and not synced since. Returns what was done."""
    if damage is Damage.NONE:
        return []
    pending = _unsynced(calls)
    for path in reversed(list(pending)):
        file = folder / path
        if not file.is_file() or "#" in path:
            continue
        size = file.stat().st_size
        first = min(start for start, _ in pending[path])
        if first >= size:
            continue
        if damage is Damage.TRUNCATED:
            with file.open("r+b") as handle:
                handle.truncate(first + (size - first) // 2)
            return [f"{path} cut from {size} to {first + (size - first) // 2}"]
        with file.open("r+b") as handle:
            for start, length in pending[path]:
                handle.seek(start)
                handle.write(b"\xa5" * max(0, min(length, size - start)))
        return [f"{path} garbled in {len(pending[path])} places"]
    return []


def _unsynced(calls: list[Call]) -> dict[str, list[tuple[int, int]]]:
    """Path -> (offset, length) of what was written since its last sync; the file written last comes last."""
    pending: dict[str, list[tuple[int, int]]] = {}
    source = ""
    for call in calls:
        match call.call:
            case "write" | "pwrite" | "sendfile":
                ranges = pending.pop(call.path, [])
                pending[call.path] = [*ranges, (call.offset, call.length)]
            case "fsync" | "fdatasync":
                pending.pop(call.path, None)
            case "from":
                source = call.path
            case "rename":
                if source in pending:
                    pending[call.path] = pending.pop(source)
            case "unlink" | "truncate":
                pending.pop(call.path, None)
            case _:
                pass
    return pending
