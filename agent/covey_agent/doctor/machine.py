"""Checks of the machine: what it can run, its memory, heat and power."""

import re
import subprocess
import sys
from pathlib import Path

import msgspec

from covey_agent.adapters.oom import count_oom_kills
from covey_agent.core.jobs import Probed, ProbeJob
from covey_agent.doctor.case import Case
from covey_agent.doctor.finding import Finding, ok, problem, skipped, warning

MIB = 1 << 20
PROBE_TIMEOUT_S = 240.0
LEAST_MEMORY, LOW_MEMORY = 32 * MIB, 128 * MIB
HOT_C = 80.0  # a Raspberry Pi slows down from here
LEAST_FILES = 256
_UNDER_VOLTAGE, _THROTTLED = 0x1, 0x4  # now; the same 16 bits higher: since the start (vcgencmd get_throttled)


def check_runtimes(case: Case) -> Finding:
    """At least one runtime loads and computes here, tried in a process of its own."""
    if case.is_participant_only:
        return skipped("a partner's agent deploys nothing")
    command = [sys.executable, "-m", "covey_agent.workers.probe"]
    try:
        done = subprocess.run(
            command, input=msgspec.json.encode(ProbeJob()) + b"\n", capture_output=True, timeout=PROBE_TIMEOUT_S, check=False
        )
        lines = done.stdout.strip().splitlines()
        probed = msgspec.json.decode(lines[-1] if lines else b"", type=Probed)
    except subprocess.TimeoutExpired:
        return problem(f"the probe does not answer within {PROBE_TIMEOUT_S:.0f} s", "is the disk very slow, or the memory full?")
    except msgspec.DecodeError:
        words = done.stderr.decode("utf-8", "replace").strip()[-200:]
        return problem(f"the probe of this machine fails: {words or f'exit code {done.returncode}'}", "install the agent anew")
    found = ", ".join(f"{name} {version}" for name, version in probed.capabilities.runtimes.items())
    failed = "; ".join(f"{name}: {why}" for name, why in probed.findings.items())
    if not found:
        return problem(f"no runtime works here, so no model can be served ({failed})", 'install one: pip install "covey[agent]"')
    return ok(found + (f" (not here: {failed})" if failed else ""))


def check_memory(case: Case) -> Finding:
    """There is some left."""
    match = re.search(r"^MemAvailable:\s+(\d+) kB$", _read(case.root / "proc/meminfo"), re.MULTILINE)
    if match is None:
        return skipped("this machine does not tell its memory")
    free = int(match.group(1)) * 1024
    advice = "stop what else runs here, or limit it; inference.memory_limit_mb keeps a model from taking all"
    text = f"{free // MIB} MiB available"
    if free < LEAST_MEMORY:
        return problem(text, advice)
    return warning(text, advice) if free < LOW_MEMORY else ok(text)


def check_oom_kills(case: Case) -> Finding:
    """The kernel has not had to kill for memory."""
    count = count_oom_kills(case.root / "proc", case.root / "sys/fs/cgroup")
    if count:
        return warning(
            f"the kernel has ended {count} processes for lack of memory since the start",
            "if the agent's were among them (covey-agent logs), deploy a smaller variant or give it more memory",
        )
    return ok("none since the start")


def check_temperature(case: Case) -> Finding:
    """Not so hot that the processor slows down."""
    texts = [_read(path).strip() for path in case.root.glob("sys/class/thermal/thermal_zone*/temp")]
    known = [int(text) / 1000 for text in texts if text.lstrip("-").isdecimal()]
    if not known:
        return skipped("this machine has no sensor that can be read")
    text = f"{max(known):.0f} degrees Celsius"
    return (
        warning(text, "give it air or a heat sink: latencies grow, and a model may fail its probation") if max(known) >= HOT_C else ok(text)
    )


def check_power(case: Case) -> Finding:
    """A Raspberry Pi gets the voltage that it needs."""
    text = next((_read(path).strip() for path in case.root.glob("sys/devices/platform/soc/*/get_throttled")), "")
    try:
        flags = int(text, 16)
    except ValueError:
        return skipped("only a Raspberry Pi tells")
    now, before = flags & (_UNDER_VOLTAGE | _THROTTLED), (flags >> 16) & _UNDER_VOLTAGE
    if now & _UNDER_VOLTAGE:
        return problem("too little voltage now", "use a stronger power supply and a short cable: this is what damages SD cards")
    if now or before:
        what = "slowed down now" if now else "too little voltage at times since the start"
        return warning(what, "use a stronger power supply and a short cable; cool it")
    return ok("enough")


def check_open_files(case: Case) -> Finding:
    """The agent may open enough files."""
    match = re.search(r"^Max open files\s+(\d+)", _read(case.root / f"proc/{case.pid or 'self'}/limits"), re.MULTILINE)
    if match is None:
        return skipped("this system does not tell")
    limit = int(match.group(1))
    if limit < LEAST_FILES:
        return problem(f"at most {limit}, and a worker with many connections needs {LEAST_FILES}", "raise LimitNOFILE of the service")
    return ok(f"at most {limit}")


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
