"""Step 1: a server in a work folder of its own, on free ports."""

import time
import urllib.error
import urllib.request

from covey_server.cli.http import connect
from covey_server.demo.actors import program
from covey_server.demo.ports import free_ports
from covey_server.demo.stage import Stage, StepFailedError
from covey_server.settings import TOKEN_FILE

_CONFIG = """# Written by `covey demo`: everything on loopback, on ports that were free.
fleet_name = "demo"
[api]
port = {api}
[edge]
port = {edge}
[broker]
port = {broker}
[flower]
port = {flower}
round_timeout_s = 120
invite_timeout_s = 90
[log]
level = "INFO"
"""


def bring_up(stage: Stage) -> None:
    """Start `covey up` and wait until it is ready."""
    started = time.monotonic()
    api, edge, broker, flower = free_ports(4)
    stage.server_dir.mkdir(parents=True, exist_ok=True)
    (stage.server_dir / "covey.toml").write_text(_CONFIG.format(api=api, edge=edge, broker=broker, flower=flower), "utf-8")
    stage.console_url = f"http://127.0.0.1:{api}"
    stage.broker_port = broker
    stage.troupe.start("server", [program("covey"), "up", "--work-dir", str(stage.server_dir)])

    def is_ready() -> bool:
        try:
            with urllib.request.urlopen(f"{stage.console_url}/readyz", timeout=2) as answer:  # noqa: S310 - our own loopback address
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def is_serving() -> bool:
        try:
            with urllib.request.urlopen(f"{stage.console_url}/healthz", timeout=2) as answer:  # noqa: S310 - our own loopback address
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    stage.wait("the console answers", is_serving, timeout_s=90)
    stage.note("first_page_s", round(stage.narrator.elapsed_s(), 1))
    password = (stage.server_dir / "admin.password").read_text("utf-8").strip()
    stage.narrator.line(f"[bold]Console: {stage.console_url}[/bold]   login: admin / {password}   (look while it runs)")
    stage.wait("the server is ready", is_ready, timeout_s=90)
    token = (stage.server_dir / TOKEN_FILE).read_text("utf-8").strip()
    if not token:
        raise StepFailedError("the server left no API token")
    stage.api = connect(stage.console_url, token)
    stage.narrator.good(
        f"fleet CA, TUF root, database, broker (mTLS), API and console, worker, Flower SuperLink: up in {time.monotonic() - started:.1f} s"
    )
