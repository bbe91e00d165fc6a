"""The files of a renewal, each complete before it has its name: what may be cut off anywhere and leaves a working identity.

keys/pending.tmp -> keys/pending (key, request) -> + device.crt -> keys/N -> current.json names N, not proven -> proven
"""

from pathlib import Path

import msgspec

from covey_agent.adapters.slot_files import fsync_folder, write_atomically
from covey_agent.errors import StateError
from covey_agent.identity import Current, Identity

PENDING = "pending"
KEPT = 2  # generations besides the first, whose key MQTT client ids are made of


def pending_dir(identity_dir: Path) -> Path:
    """Where a key waits for its certificate."""
    return identity_dir / "keys" / PENDING


def pending_request(identity_dir: Path) -> str:
    """The request of the pending key, or ""."""
    try:
        return (pending_dir(identity_dir) / "device.csr").read_text("ascii")
    except FileNotFoundError:
        return ""


def new_pending(identity_dir: Path) -> Path:
    """An empty folder for a new key, which `seal_pending` gives its name."""
    folder = pending_dir(identity_dir).with_suffix(".tmp")
    folder.parent.mkdir(mode=0o700, exist_ok=True)
    fsync_folder(identity_dir)
    _remove(folder)
    folder.mkdir(mode=0o700)
    return folder


def seal_pending(identity_dir: Path) -> None:
    """The new key and its request are complete."""
    folder = pending_dir(identity_dir)
    fsync_folder(folder.with_suffix(".tmp"))
    folder.with_suffix(".tmp").rename(folder)
    fsync_folder(folder.parent)


def discard_pending(identity_dir: Path) -> None:
    """The pending key gets no certificate."""
    _remove(pending_dir(identity_dir))


def install(identity: Identity, certificate: str) -> int:
    """The pending key and its certificate, which was checked, become the generation that is tried next. Returns its number."""
    pending = pending_dir(identity.folder)
    write_atomically(pending / "device.crt", certificate.encode("ascii"), mode=0o600)
    (pending / "device.csr").unlink(missing_ok=True)
    known = _generations(identity.folder)
    generation = max([0, *known]) + 1
    pending.rename(identity.keys(generation))
    fsync_folder(pending.parent)
    current = identity.current
    base = current.generation if current.proven else current.previous
    point_to(identity, Current(generation, base, proven=False))
    return generation


def point_to(identity: Identity, current: Current) -> None:
    """Change which generation counts."""
    try:
        write_atomically(identity.folder / "current.json", msgspec.json.encode(current), mode=0o600)
    except OSError as exc:
        raise StateError(f"cannot write to {identity.folder}: {exc.strerror}") from exc


def forget_old(identity: Identity) -> None:
    """Remove generations that nothing points to any more; children of a moment ago may still read the one before."""
    current = identity.current
    kept = {current.generation, current.previous}
    for generation in sorted(_generations(identity.folder))[:-KEPT]:
        if generation not in kept:
            _remove(identity.keys(generation))


def _remove(folder: Path) -> None:
    """A folder of files. Not by `shutil`, which would load three compression libraries into the idle process."""
    if folder.is_dir():
        for path in folder.iterdir():
            path.unlink(missing_ok=True)
        folder.rmdir()


def _generations(identity_dir: Path) -> list[int]:
    keys = identity_dir / "keys"
    return [int(path.name) for path in keys.iterdir() if path.name.isdecimal()] if keys.is_dir() else []
