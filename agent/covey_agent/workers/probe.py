"""`python -m covey_agent.workers.probe`: what can this machine run? ProbeJob -> Probed.

Each runtime, and each execution provider that it says it has, is tried in a process of its own, because the wrong build of one does
not raise, it kills (SIGILL on an older processor); that is a finding here, not a crash.
"""

import platform
import signal
import subprocess
import sys
import time

from covey_agent.core.jobs import Probed, ProbeJob
from covey_agent.workers.errors import ModelError
from covey_agent.workers.hardware import read_cpu_count, read_cpu_flags, read_memory_total, read_system
from covey_agent.workers.lines import Lines, die_with_parent
from covey_agent.workers.runtimes import list_providers
from covey_agent.workers.runtimes.selftest import run_selftest
from covey_contract.limits import MAX_REASON_CHARS
from covey_contract.messages import Capabilities
from covey_contract.release import Runtime

_TIMEOUT_S = 60.0  # importing a runtime from a slow SD card takes a while
_EXIT_UNUSABLE = 3
_SELF = [sys.executable, "-m", "covey_agent.workers.probe"]


def main() -> None:
    """Do the job on standard input; or, with a runtime's name and perhaps a provider's, try that one and print what it is or the reason."""
    if len(sys.argv) > 1:
        raise SystemExit(_try_runtime(Runtime(sys.argv[1]), *sys.argv[2:3]))
    lines = Lines.take_over()
    lines.read_job(ProbeJob)
    lines.emit(probe())


def probe() -> Probed:
    """Probe everything."""
    versions: dict[str, str] = {}
    findings: dict[str, str] = {}
    providers: dict[str, list[str]] = {}
    for runtime in Runtime:
        usable, text = try_apart([*_SELF, runtime.value])
        if not usable:
            findings[runtime.value] = text[:MAX_REASON_CHARS]
            continue
        versions[runtime.value], *offered = text.split("\t")
        providers[runtime.value] = offered[:1]  # the default is what was just tried
        for provider in offered[1:]:
            usable, text = try_apart([*_SELF, runtime.value, provider])
            if usable:
                providers[runtime.value].append(provider)
            else:
                findings[f"{runtime.value} {provider}"] = text[:MAX_REASON_CHARS]
    capabilities = Capabilities(
        arch=platform.machine(),
        cpu_flags=read_cpu_flags(),
        cpu_count=read_cpu_count(),
        memory=read_memory_total(),
        runtimes=versions,
        providers=providers,
        python=platform.python_version(),
        system=read_system(),
    )
    return Probed(capabilities=capabilities, at=time.time_ns() // 1_000_000, findings=findings)


def try_apart(command: list[str], *, timeout_s: float = _TIMEOUT_S) -> tuple[bool, str]:
    """Run a trial in its own process: (whether it works, its version or what went wrong)."""
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired:
        return False, f"does not answer within {timeout_s:.0f} s"
    except OSError as exc:
        return False, f"cannot be tried: {exc}"
    last = done.stdout.strip().rpartition("\n")[2]
    if done.returncode == 0:
        return True, last
    if done.returncode == _EXIT_UNUSABLE:
        return False, last
    if done.returncode < 0:
        return False, f"dies here by {signal.Signals(-done.returncode).name}"
    return False, f"fails with exit code {done.returncode}: {done.stderr.strip()[-200:]}"


def _try_runtime(runtime: Runtime, provider: str = "") -> int:
    die_with_parent()
    try:
        result, code = run_selftest(runtime, provider), 0
        if not provider:
            result = "\t".join([result, *list_providers(runtime)])
    except ModelError as exc:
        result, code = str(exc).replace("\n", " "), _EXIT_UNUSABLE
    sys.stdout.write(f"{result}\n")
    return code


if __name__ == "__main__":
    main()
