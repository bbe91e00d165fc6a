"""Where the embedded broker keeps what it needs, and writing those files whole or not at all."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from covey_server.settings import Settings


@dataclass(frozen=True, slots=True)
class BrokerFiles:
    """The embedded broker's folder."""

    folder: Path

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """The folder of this server."""
        return cls(settings.path("broker"))

    @property
    def config(self) -> Path:
        """The broker's configuration; includes `users`."""
        return self.folder / "nats.conf"

    @property
    def users(self) -> Path:
        """Who may say what; rewritten whenever a device joins or leaves."""
        return self.folder / "users.conf"

    @property
    def pending(self) -> Path:
        """Exists while `users` holds a table that the broker may not have taken yet."""
        return self.folder / "users.pending"

    @property
    def lock(self) -> Path:
        """Held while `users` is rewritten, because API and worker both do."""
        return self.folder / "users.lock"

    @property
    def pid(self) -> Path:
        """Written by the broker."""
        return self.folder / "nats.pid"

    @property
    def log(self) -> Path:
        """Written by the broker; says when it has taken a new table."""
        return self.folder / "nats.log"

    @property
    def store(self) -> Path:
        """Retained and queued messages."""
        return self.folder / "jetstream"


def write_whole(path: Path, text: str) -> None:
    """Replace a file atomically; its readers see the old or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    with draft.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
