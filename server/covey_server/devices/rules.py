"""Rules of devices and enrolment. Pure."""

import re
from collections.abc import Mapping

from covey_contract.ids import DeviceId, parse_device_id, parse_name
from covey_contract.messages import Profile, Reported
from covey_server.errors import InvalidInputError

SERVER_NAME = "covey-server"  # CN of the gateway's own client certificate
RESERVED_PREFIX = SERVER_NAME
MAX_LABELS = 32
_LABEL_VALUE = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._/+-]{0,63}")
_COUNTER_LOST_MS = 600_000


def parse_new_device_id(value: str) -> DeviceId:
    """An id that a device may take. Raises InvalidIdError, or InvalidInputError for one that the server keeps for itself."""
    device = parse_device_id(value)
    if device.startswith(RESERVED_PREFIX):
        raise InvalidInputError(f"ids that begin with {RESERVED_PREFIX} are the server's own; got {device}")
    return device


def parse_profile(value: str) -> Profile:
    """`device` or `partner`."""
    try:
        return Profile(value)
    except ValueError as exc:
        raise InvalidInputError(f"profile must be one of {', '.join(p.value for p in Profile)}, got {value!r:.40}") from exc


def check_labels(labels: Mapping[str, str]) -> dict[str, str]:
    """Labels as they may be stored: few, short, and of characters that need no escaping anywhere."""
    if len(labels) > MAX_LABELS:
        raise InvalidInputError(f"a device may have {MAX_LABELS} labels, got {len(labels)}")
    for key, value in labels.items():
        parse_name(key, "label name")
        if _LABEL_VALUE.fullmatch(value) is None:
            raise InvalidInputError(f"label {key} must match {_LABEL_VALUE.pattern}, got {value!r:.80}")
    return dict(sorted(labels.items()))


def is_stale(reported: Reported, *, known_generation: int, known_at: int) -> bool:
    """Whether a report is older than the one known.

    The generation decides. The exception is a device that lost its counter (a new disk under the same identity): its
    generation is lower although it was made, by the device's own clock, long after the one that is known. Without it, the
    server would ignore that device for ever.
    """
    return reported.generation < known_generation and reported.at <= known_at + _COUNTER_LOST_MS


def serving_release(reported: Reported) -> tuple[str, int, str]:
    """(model, version, variant) that a device serves; ("", 0, "") when nothing serves."""
    if reported.serving:
        for slot in reported.slots:
            if slot.slot == reported.active_slot:
                return slot.model, slot.version, slot.variant
    return "", 0, ""
