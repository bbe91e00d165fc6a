"""How fast this device runs the variants of each model, as it was measured here; kept until the machine or a runtime changes."""

import logging
from collections.abc import Callable, Mapping

import msgspec

from covey_agent.daemon.kit import Kit
from covey_agent.errors import StoreError

logger = logging.getLogger(__name__)
KEY = "latencies"
MAX_MODELS = 20


class _Stored(msgspec.Struct, frozen=True):
    fingerprint: str = ""
    models: dict[str, dict[str, float]] = msgspec.field(default_factory=dict)  # the one measured last comes last


class Latencies:
    """Read at a deployment, written after a trial."""

    def __init__(self, kit: Kit, fingerprint: Callable[[], str]) -> None:
        self._kit = kit
        self._fingerprint = fingerprint

    def of(self, model: str) -> dict[str, float]:
        """variant@provider -> ms; nothing if it was measured on another machine, or by other runtimes."""
        return self._load().models.get(model, {})

    def keep(self, model: str, latencies: Mapping[str, float]) -> None:
        """Remember them; the models that were not measured for the longest time make room."""
        models = {name: known for name, known in self._load().models.items() if name != model} | {model: dict(latencies)}
        for name in list(models)[:-MAX_MODELS]:
            del models[name]
        try:
            self._kit.store.save({KEY: msgspec.json.encode(_Stored(self._fingerprint(), models))}, durable=False)
        except StoreError as exc:  # measured again with the next release
            logger.warning("what was measured cannot be noted: %s", exc)

    def _load(self) -> _Stored:
        data = self._kit.store.load(KEY)
        try:
            stored = msgspec.json.decode(data, type=_Stored) if data else _Stored()
        except msgspec.DecodeError:
            return _Stored()
        return stored if stored.fingerprint == self._fingerprint() else _Stored()
