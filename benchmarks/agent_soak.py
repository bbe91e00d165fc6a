"""Weeks of an idle, connected agent on a fast clock: growth of memory, descriptors and threads, bytes written to flash, CPU.

    .venv/bin/python benchmarks/agent_soak.py --days 30 --speed 1000

The real agent, unchanged, connected by mutual TLS to the real broker, with its settings as shipped (a system reading every 30 s, reports
every 5 minutes, the certificate looked at every hour), reconnecting every `--reconnect-hours` because the broker restarts. No model is
loaded. Goals: less than 1 MB more memory after 30 days, less than 5 MB written a day. Needs gcc.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.fakes.agent.daemon import AckingServer, Daemon, make_identity
from tests.fakes.fast_clock import FastClock
from tests.fakes.nats_broker import RunningBroker, running_broker, wait_until
from tests.fakes.usage import cpu_s, open_files, pss_kb, written_bytes

DAY_S = 86_400

SHIPPED = {"READINGS_SYSTEM_INTERVAL_S": 30, "READINGS_SEND_INTERVAL_S": 2, "READINGS_ACK_TIMEOUT_S": 600, "READINGS_INFER_INTERVAL_S": 5}


def main() -> int:
    """Live and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--days", type=float, default=30.0)
    parser.add_argument("--speed", type=float, default=1000.0, help="simulated seconds in one real second")
    parser.add_argument("--warm-up-days", type=float, default=1.0, help="before memory is looked at first")
    parser.add_argument("--reconnect-hours", type=float, default=24.0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="covey-soak-") as folder:
        result = soak(Path(folder), options)
    if options.json:
        print(json.dumps(result, indent=2))
    else:
        for name, value in result.items():
            print(f"{name:<28} {value}")
    return 0


def soak(folder: Path, options: argparse.Namespace) -> dict[str, object]:
    """One life."""
    clock = FastClock(folder)
    with running_broker(folder / "server", devices=["cam-1"]) as broker:
        make_identity(folder / "state", broker, "cam-1")
        environment = {f"COVEY_AGENT_{name}": str(value) for name, value in SHIPPED.items()}
        daemon = Daemon(folder / "state", clock.environment(only="covey_agent.cli") | environment)
        server = AckingServer(broker)
        server.connect()
        daemon.start()
        try:
            wait_until(
                lambda: daemon.status()["connected"] and not daemon.children(), what="a connection, and the end of the probe", timeout_s=60
            )
            live(clock, server, broker, days=options.warm_up_days, options=options)
            samples = [pss_kb(daemon.pid)]
            first = (written_bytes(daemon.pid), cpu_s(daemon.pid), open_files(daemon.pid))
            begun, whole = clock.added_s(), max(1, round(options.days))
            for day in range(whole):
                live(clock, server, broker, days=options.days / whole, options=options)
                samples.append(pss_kb(daemon.pid))
                show(f"day {day + 1} of {options.days:g}: {samples[-1]} kB")
            days = (clock.added_s() - begun) / DAY_S
            status = daemon.status()
            return {
                "simulated_days": round(days, 2),
                "pss_mb_after_warm_up": round(samples[0] / 1024, 2),
                "pss_mb_at_the_end": round(samples[-1] / 1024, 2),
                "pss_mb_most": round(max(samples) / 1024, 2),
                "growth_mb": round((samples[-1] - samples[0]) / 1024, 3),
                "open_files": [first[2], open_files(daemon.pid)],
                "mb_written_a_day": round((written_bytes(daemon.pid) - first[0]) / days / 1e6, 3),
                "cpu_percent_of_a_core": round(100 * (cpu_s(daemon.pid) - first[1]) / days / DAY_S, 4),
                "readings_a_day": round(len(server.stored) / (days + options.warm_up_days)),
                "readings_lost": status["readings_lost"],
                "database_kb": (folder / "state" / "state.db").stat().st_size // 1024,
            }
        finally:
            daemon.stop()


def live(clock: FastClock, server: AckingServer, broker: RunningBroker, *, days: float, options: argparse.Namespace) -> None:
    """Let so much time pass, with the broker going away and coming back now and then."""
    end = clock.added_s() + days * DAY_S
    while clock.added_s() < end:
        stretch = min(end, clock.added_s() + options.reconnect_hours * 3600)
        clock.run(times=options.speed)
        while clock.added_s() < stretch:
            time.sleep(0.05)
        clock.run(times=1)
        assert server.peer is not None
        server.peer.messages.clear()
        if stretch < end or options.reconnect_hours <= 24 * days:
            broker.process.stop()
            broker.process.start()
            wait_until(server.peer.client.is_connected, what="the server's own connection", timeout_s=120)


def show(text: str) -> None:
    """Progress, where a person looks."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r{text}   ")
        sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
