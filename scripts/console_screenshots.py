"""Screenshots of every page of the console, wide and narrow, light and dark, to be looked at.

    python scripts/console_screenshots.py [FOLDER] [--only rollout] [--empty]

Serves the development data of tests/fakes/console_data.py from a temporary database and needs an installed Chromium.
"""

import argparse
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "server"), str(ROOT / "contract")]

from playwright.sync_api import Browser, Page, expect  # noqa: E402 - the folders above must be on the path first
from tests.fakes import console_data  # noqa: E402
from tests.fakes.console_app import open_database  # noqa: E402
from tests.fakes.console_browser import find_chromium, open_chromium, serve_console  # noqa: E402

from covey_server.clock import utc_now  # noqa: E402

PAGES = {
    "overview": "/",
    "devices": "/devices",
    "device": "/devices/pi-kitchen",
    "device-rolled-back": "/devices/jetson-dock",
    "partner": "/devices/clinic-north",
    "releases": "/releases",
    "release": "/releases/1",
    "rollouts": "/rollouts",
    "rollout-halted": f"/rollouts/{console_data.HALTED}",
    "rollout-completed": f"/rollouts/{console_data.COMPLETED}",
    "runs": "/runs",
    "run": f"/runs/{console_data.RUN}",
    "ledger": "/ledger",
    "alerts": "/alerts",
    "audit": "/audit",
    "missing": "/devices/nobody",
}
SIZES = {"wide": (1280, 900), "narrow": (390, 844)}


def main() -> int:
    """Take them all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=None, help="where the PNG files go; default: a temporary folder")
    parser.add_argument("--only", default="", help="only pages whose name contains this")
    parser.add_argument("--empty", action="store_true", help="a fleet without anything in it")
    wanted = parser.parse_args()
    executable = find_chromium()
    if executable is None:
        sys.stderr.write("no Chromium found; install it (Debian: apt-get install chromium)\n")
        return 1
    folder = wanted.folder or Path(tempfile.mkdtemp(prefix="covey-console-"))
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as work:
        db = open_database(Path(work))
        with db.begin() as session:
            console_data.add_users(session, now=utc_now())
            if not wanted.empty:
                console_data.fill(session, now=utc_now())
        with serve_console(db, folder=Path(work)) as address, open_chromium(executable) as browser:
            for size in SIZES:
                for scheme in ("light", "dark"):
                    take(browser, address, folder, size=size, scheme=scheme, only=wanted.only)
        db.close()
    print(folder)
    return 0


def take(browser: Browser, address: str, folder: Path, *, size: str, scheme: str, only: str) -> None:
    """Every page at one size in one colour scheme."""
    width, height = SIZES[size]
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme="dark" if scheme == "dark" else "light")
    page = context.new_page()
    page.goto(f"{address}/login")
    if only in "login":
        page.screenshot(path=folder / f"login-{size}-{scheme}.png")
    page.fill("input[name=user]", "olga")
    page.fill("input[name=password]", console_data.PASSWORD)
    page.click("button.primary")
    page.wait_for_url(f"{address}/")
    for name, path in PAGES.items():
        if only in name:
            page.goto(address + path)
            settle(page)
            page.screenshot(path=folder / f"{name}-{size}-{scheme}.png", full_page=True)
    context.close()


def settle(page: Page) -> None:
    """Wait until charts are drawn and late parts have come."""
    for waiting in ("Loading…", "Recomputing"):
        expect(page.get_by_text(waiting)).to_have_count(0, timeout=20_000)
    page.wait_for_timeout(150)


if __name__ == "__main__":
    sys.exit(main())
