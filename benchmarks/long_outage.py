"""Days without a broker at one reading a second, lived by the real agent on a fast clock; then the broker comes back.

    .venv/bin/python benchmarks/long_outage.py --days 7 --interval 1 --speed 300

Tells how many readings were made, held, lost and stored, whether each was stored exactly once, what it cost in CPU and bytes written, and
how fast the buffer was drained. At a high speed the agent's own work takes a part of each simulated second, so that fewer are made.
Needs gcc. A smaller version is `tests/agent/integration/test_long_outages.py`.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.fakes.agent.daemon import AckingServer, Daemon, make_identity
from tests.fakes.fast_clock import FastClock
from tests.fakes.nats_broker import running_broker, wait_until
from tests.fakes.usage import cpu_s, written_bytes

DAY_S = 86_400


def main() -> int:
    """Live through it and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--days", type=float, default=7.0)
    parser.add_argument("--interval", type=float, default=1.0, help="seconds between two readings")
    parser.add_argument("--speed", type=float, default=300.0, help="simulated seconds in one real second")
    parser.add_argument("--max-mb", type=float, default=128.0, help="the buffer's bound, MiB")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="covey-outage-") as folder:
        result = live_through(Path(folder), options)
    if options.json:
        print(json.dumps(result, indent=2))
    else:
        for name, value in result.items():
            print(f"{name:<28} {value:,}" if isinstance(value, int | float) else f"{name:<28} {value}")
    return 0 if result["each_stored_once"] and not result["lost"] else 1


def live_through(folder: Path, options: argparse.Namespace) -> dict[str, object]:
    """The outage and the drain."""
    clock = FastClock(folder)
    with running_broker(folder / "server", devices=["cam-1"]) as broker:
        make_identity(folder / "state", broker, "cam-1")
        server = AckingServer(broker)
        server.connect()
        daemon = Daemon(folder / "state", environment(clock, options))
        daemon.start()
        try:
            wait_until(lambda: daemon.status()["connected"], what="a connection")
            broker.process.stop()
            before = written_bytes(daemon.pid)
            end = clock.added_s() + options.days * DAY_S
            clock.run(times=options.speed)
            while clock.added_s() < end:
                show(f"{options.days - (end - clock.added_s()) / DAY_S:.2f} of {options.days:g} days")
                time.sleep(0.5)
            clock.run(times=1)
            status, outage_bytes, outage_cpu = daemon.status(), written_bytes(daemon.pid) - before, cpu_s(daemon.pid)
            began = time.monotonic()
            broker.process.start()
            assert server.peer is not None
            server.peer.close()  # two under one name would throw each other out
            again = AckingServer(broker)
            again.stored = server.stored
            again.connect()
            wait_until(lambda: daemon.status()["connected"], what="a connection", timeout_s=120)
            connected = time.monotonic()
            while daemon.status()["readings_on_disk"]:
                show(f"{daemon.status()['readings_on_disk']} to drain")
                time.sleep(1.0)
            drained = time.monotonic() - connected
            lost = daemon.status()["readings_lost"]
        finally:
            daemon.stop()
    numbers = sorted(sequence for _, sequence in again.stored)
    held = int(str(status["readings_on_disk"]))
    return {
        "simulated_days": options.days,
        "readings_held_after_outage": held,
        "readings_a_second": round(held / options.days / DAY_S, 3),
        "bytes_held": int(str(status["readings_bytes"])),
        "lost": int(str(lost)),
        "stored_by_the_server": len(numbers),
        "sent_again": again.repeated,
        "each_stored_once": is_without_gap(numbers),
        "cpu_s_of_the_outage": round(outage_cpu, 1),
        "mb_written_in_the_outage": round(outage_bytes / 1e6, 1),
        "s_until_connected": round(connected - began, 1),
        "s_to_drain": round(drained, 1),
        "drained_a_second": round(held / drained),
    }


def environment(clock: FastClock, options: argparse.Namespace) -> dict[str, str]:
    """The agent's settings."""
    values = {
        "READINGS_SYSTEM_INTERVAL_S": options.interval,
        "READINGS_SEND_INTERVAL_S": 2,
        "READINGS_ACK_TIMEOUT_S": 20,
        "READINGS_MAX_MB": options.max_mb,
        "REPORT_INTERVAL_S": 300,
    }
    return clock.environment(only="covey_agent.cli") | {f"COVEY_AGENT_{name}": str(value) for name, value in values.items()}


def is_without_gap(numbers: Iterable[int]) -> bool:
    """Whether no number is missing between the first and the last; twice it cannot be, as a key of a table."""
    return all(late == early + 1 for early, late in pairwise(numbers))


def show(text: str) -> None:
    """Progress, where a person looks."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r{text}   ")
        sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
