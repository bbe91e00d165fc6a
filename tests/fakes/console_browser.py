"""A console behind a real HTTP listener, and a real Chromium that looks at it."""

import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn
from playwright.sync_api import Browser, sync_playwright
from tests.fakes.console_app import build_console

from covey_server.clock import utc_now
from covey_server.db import Database

_ARGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def find_chromium() -> str | None:
    """Path of an installed Chromium."""
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@contextmanager
def serve_console(db: Database, *, folder: Path) -> Iterator[str]:
    """Serve until the block ends; yields the address."""
    app = build_console(db, clock=utc_now, folder=folder)
    # No WebSockets: the console has none, and loading uvicorn's default implementation warns of its age.
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, ws="none", log_level="warning", timeout_graceful_shutdown=2))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 10
    while not server.started and thread.is_alive() and time.monotonic() < deadline:
        time.sleep(0.02)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)


@contextmanager
def open_chromium(executable: str) -> Iterator[Browser]:
    """A headless Chromium that talks to loopback only."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, headless=True, args=list(_ARGS))
        try:
            yield browser
        finally:
            browser.close()
