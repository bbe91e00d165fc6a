"""Checks of time: a certificate is judged by it, and a device without a battery for its clock starts in 1970."""

import ctypes
import ctypes.util
import time
from datetime import UTC, datetime

from covey_agent.core.walltime import ClockState, WallTime
from covey_agent.doctor.case import Case
from covey_agent.doctor.finding import Finding, ok, problem, skipped, warning

_STA_UNSYNC = 0x0040  # adjtimex(2)
_STATUS_OFFSET = 40 if ctypes.sizeof(ctypes.c_long) == 8 else 20  # of `status` in struct timex
_TIMEX_BYTES = 256  # more than it is anywhere
_SET = "set it, and let systemd-timesyncd or chrony keep it: sudo timedatectl set-ntp true"


def check_clock(case: Case) -> Finding:
    """It does not read earlier than a time that is known to have been."""
    now = case.now_ms()
    text = datetime.fromtimestamp(now / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC")
    match WallTime(case.time_floor_ms).look(now, time.monotonic()):
        case ClockState.BEHIND:
            return problem(f"it is {text} on this machine, earlier than this program or its last run", _SET)
        case ClockState.AHEAD:
            return warning(f"it is {text} on this machine, more than a year after the agent's last run", f"if that is wrong, {_SET}")
        case _:
            return ok(text)


def check_synchronisation(_case: Case) -> Finding:
    """Something keeps the clock right."""
    status = read_clock_status()
    if status is None:
        return skipped("this system does not tell")
    if status & _STA_UNSYNC:
        return warning("nobody keeps this machine's clock right", _SET)
    return ok("the kernel's clock is synchronised")


def read_clock_status() -> int | None:
    """`status` of adjtimex(2), which changes nothing when asked for nothing; None where there is no such call."""
    buffer = ctypes.create_string_buffer(_TIMEX_BYTES)
    try:
        library = ctypes.CDLL(None)
        if library.adjtimex(buffer) < 0:
            return None
    except (OSError, AttributeError):
        return None
    return int.from_bytes(buffer.raw[_STATUS_OFFSET : _STATUS_OFFSET + 4], "little")
