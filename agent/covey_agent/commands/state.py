"""What the looking commands read: the state database of a directory, whether the daemon works or not."""

from pathlib import Path
from typing import TypeVar

import msgspec

from covey_agent.adapters.store_sqlite import DATABASE_NAME, Database, open_read_only
from covey_agent.core.machine import Machine
from covey_agent.errors import StateError
from covey_agent.identity import load_identity

T = TypeVar("T")


def open_state(state_dir: Path) -> Database | None:
    """The database; None if the agent has never run here. Raises StateError if this is no agent's directory."""
    load_identity(state_dir)
    path = state_dir / DATABASE_NAME
    return open_read_only(path) if path.exists() else None


def load_value(database: Database | None, key: str, kind: type[T]) -> T | None:
    """One stored value."""
    rows = database.query("SELECT data FROM value WHERE key = ?", (key,)) if database else []
    if not rows or not isinstance(rows[0][0], bytes):
        return None
    try:
        return msgspec.json.decode(rows[0][0], type=kind)
    except msgspec.DecodeError as exc:
        raise StateError(f"the stored {key} is unreadable: {exc}") from exc


def load_machine(database: Database | None) -> Machine:
    """The deployment machine."""
    return load_value(database, "machine", Machine) or Machine()
