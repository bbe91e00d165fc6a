"""A real Chromium in the console: what only a browser can show."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, StorageState, expect
from sqlmodel import select
from tests.fakes import console_data
from tests.fakes.console_app import open_database
from tests.fakes.console_browser import find_chromium, open_chromium, serve_console
from tests.fakes.services import require

from covey_server.clock import utc_now
from covey_server.db import Database
from covey_server.outbox import emit
from covey_server.rollouts.models import Rollout, RolloutDevice, RolloutDeviceState, RolloutState
from covey_server.telemetry.models import ReadingRow

pytestmark = pytest.mark.browser

PATHS = (
    "/",
    "/devices",
    "/devices/pi-kitchen",
    "/devices/jetson-dock",
    "/devices/clinic-north",
    "/releases",
    "/releases/1",
    "/rollouts",
    f"/rollouts/{console_data.HALTED}",
    "/runs",
    f"/runs/{console_data.RUN}",
    "/ledger",
    "/alerts",
    "/audit",
)

_SHOW = """() => {
  Object.defineProperty(document, "hidden", { get: () => !SHOWN, configurable: true });
  document.dispatchEvent(new Event("visibilitychange"));
}"""


@dataclass
class Window:
    """A page and everything that went wrong in it."""

    page: Page
    address: str
    faults: list[str] = field(default_factory=list)

    def open(self, path: str) -> None:
        """Go there and wait until charts and late parts have come."""
        self.page.goto(self.address + path)
        for waiting in ("Loading…", "Recomputing"):
            expect(self.page.get_by_text(waiting)).to_have_count(0, timeout=20_000)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    executable = find_chromium()
    require(executable, "Chromium")
    assert executable is not None
    with open_chromium(executable) as browser:
        yield browser


@pytest.fixture(scope="module")
def db(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    db = open_database(tmp_path_factory.mktemp("fleet"))
    with db.begin() as session:
        console_data.add_users(session, now=utc_now())
        console_data.fill(session, now=utc_now())
    yield db
    db.close()


@pytest.fixture(scope="module")
def address(db: Database, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder: Path = tmp_path_factory.mktemp("work")
    with serve_console(db, folder=folder) as address:
        yield address


@pytest.fixture
def outside(chromium: Browser, address: str) -> Iterator[Window]:
    """Nobody is logged in."""
    with open_window(chromium, address, None) as window:
        yield window


@pytest.fixture(scope="module")
def login(chromium: Browser, address: str) -> StorageState:
    """One login for all tests: password hashing is slow on purpose."""
    with open_window(chromium, address, None) as window:
        log_in(window)
        window.page.wait_for_url(f"{address}/")
        return window.page.context.storage_state()


@pytest.fixture
def inside(chromium: Browser, address: str, login: StorageState) -> Iterator[Window]:
    """An operator is logged in."""
    with open_window(chromium, address, login) as window:
        yield window


@contextmanager
def open_window(chromium: Browser, address: str, login: StorageState | None) -> Iterator[Window]:
    context = chromium.new_context(viewport={"width": 1280, "height": 900}, storage_state=login)
    window = Window(context.new_page(), address)
    watch(window)
    yield window
    context.close()


def watch(window: Window) -> None:
    # A CSP violation is an error in the console too.
    window.page.on("console", lambda message: window.faults.append(message.text) if message.type in {"error", "warning"} else None)
    window.page.on("pageerror", lambda error: window.faults.append(str(error)))
    window.page.on("dialog", lambda dialog: window.faults.append(f"dialog: {dialog.message}"))


def log_in(window: Window, *, password: str = console_data.PASSWORD) -> None:
    window.page.goto(f"{window.address}/login")
    window.page.get_by_label("User").fill("olga")
    window.page.get_by_label("Password").fill(password)
    window.page.get_by_role("button", name="Log in").click()


def test_a_wrong_password_stays_outside(outside: Window) -> None:
    log_in(outside, password="guess")
    expect(outside.page.get_by_role("alert")).to_contain_text("The user name or password is wrong.")
    expect(outside.page.get_by_label("User")).to_have_value("olga")
    outside.page.goto(f"{outside.address}/devices")
    expect(outside.page).to_have_url(f"{outside.address}/login?next=/devices")


def test_a_login_lasts_until_it_is_ended(outside: Window) -> None:
    log_in(outside)
    expect(outside.page.get_by_role("heading", name="Overview")).to_be_visible()
    outside.page.get_by_role("button", name="Log out").click()
    expect(outside.page.get_by_role("button", name="Log in")).to_be_visible()
    outside.page.goto(outside.address)
    expect(outside.page.get_by_role("button", name="Log in")).to_be_visible()
    assert outside.faults == []


def test_the_overview_shows_the_fleet_and_leads_on(inside: Window) -> None:
    inside.open("/")
    expect(inside.page.get_by_role("link", name="Devices online")).to_contain_text("4 of 5")
    expect(inside.page.locator(".connection")).to_have_text("Live")
    inside.page.get_by_role("link", name="digits v2 to the fleet").click()
    expect(inside.page.get_by_role("alert")).to_contain_text("Halted by a rule")
    assert inside.faults == []


@pytest.mark.parametrize("width", [360, 390, 1280])
def test_no_page_has_errors_or_scrolls_sideways(inside: Window, width: int) -> None:
    inside.page.set_viewport_size({"width": width, "height": 844})
    for path in PATHS:
        inside.open(path)
        assert inside.page.evaluate("document.documentElement.scrollWidth") <= width, path
        assert inside.faults == [], path


def test_a_rollout_moves_without_a_reload(inside: Window, db: Database) -> None:
    with db.begin() as session:
        session.get_one(Rollout, console_data.COMPLETED).state = RolloutState.RUNNING
        part = next(part for part in parts_of(db) if part.device_id == "pi-kitchen")
        row = session.get_one(RolloutDevice, part.id)
        row.state, row.chunks_done, row.chunks_total = RolloutDeviceState.ACTIVE, 1, 40
    inside.open(f"/rollouts/{console_data.COMPLETED}")
    inside.page.evaluate("document.body.dataset.same = 'yes'")
    line = inside.page.get_by_role("row").filter(has_text="pi-kitchen")
    expect(line).to_contain_text("1 of 40 chunks")
    expect(inside.page.locator(".connection")).to_have_text("Live")
    for chunks in (17, 40):
        with db.begin() as session:
            session.get_one(RolloutDevice, part.id).chunks_done = chunks
            emit(session, "rollout.changed", {"id": console_data.COMPLETED})
        expect(line).to_contain_text(f"{chunks} of 40 chunks")
    with db.begin() as session:
        session.get_one(RolloutDevice, part.id).state = RolloutDeviceState.SUCCEEDED
        session.get_one(Rollout, console_data.COMPLETED).state = RolloutState.COMPLETED
        emit(session, "rollout.changed", {"id": console_data.COMPLETED})
    expect(inside.page.locator(".page-head")).to_contain_text("completed")
    assert inside.page.evaluate("document.body.dataset.same") == "yes"
    assert inside.faults == []


def test_an_event_about_something_else_fetches_nothing(inside: Window, db: Database) -> None:
    inside.open(f"/rollouts/{console_data.COMPLETED}")
    expect(inside.page.locator(".connection")).to_have_text("Live")
    asked: list[str] = []
    inside.page.on("request", lambda request: asked.append(request.url))
    with db.begin() as session:
        emit(session, "rollout.changed", {"id": "another"})
        emit(session, "rollout.changed", {"id": console_data.COMPLETED})
    inside.page.wait_for_event("response", lambda answer: answer.url.endswith(console_data.COMPLETED))
    assert len(asked) == 1


def test_what_happened_while_a_page_was_hidden_is_fetched_when_it_is_seen_again(inside: Window, db: Database) -> None:
    inside.open("/alerts")
    expect(inside.page.locator(".connection")).to_have_text("Live")
    inside.page.evaluate(_SHOW.replace("SHOWN", "false"))
    with db.begin() as session:
        console_data.add_alert(session, "disk_full", now=utc_now())
        emit(session, "alert.changed", {"id": 99})
    inside.page.evaluate(_SHOW.replace("SHOWN", "true"))
    expect(inside.page.get_by_text("Disk full")).to_be_visible()


def test_charts_follow_new_readings(inside: Window, db: Database) -> None:
    inside.open("/devices/pi-kitchen")
    chart = inside.page.locator('[data-chart="temperature"]')
    expect(chart.locator("canvas")).to_be_visible()
    with db.begin() as session:
        session.add(
            ReadingRow(device_id="pi-kitchen", epoch="new", sequence=0, at=utc_now(), kind="system", values={"temperature_c": 88.5})
        )
    expect(chart).to_have_attribute("aria-label", "Temperature: newest temperature 88.5 °C", timeout=15_000)


def test_searching_devices_narrows_the_list_while_typing(inside: Window) -> None:
    inside.open("/devices")
    inside.page.get_by_label("Search").press_sequentially("oslo", delay=20)
    expect(inside.page.get_by_text("1 device pass")).to_be_visible()
    expect(inside.page.get_by_role("link", name="jetson-dock")).to_be_visible()
    expect(inside.page).to_have_url(f"{inside.address}/devices?q=oslo&presence=&profile=&serving=&state=")
    expect(inside.page.get_by_label("Search")).to_be_focused()


def test_a_question_comes_before_a_rollout_is_paused(inside: Window, db: Database) -> None:
    with db.begin() as session:
        session.get_one(Rollout, console_data.HALTED).state = RolloutState.RUNNING
    inside.open(f"/rollouts/{console_data.HALTED}")
    inside.page.get_by_role("button", name="Pause").click()
    question = inside.page.get_by_role("dialog")
    expect(question).to_contain_text("Pause this rollout?")
    question.get_by_role("button", name="Keep as it is").click()
    assert state_of(db) is RolloutState.RUNNING
    inside.page.get_by_role("button", name="Pause").click()
    question.get_by_role("button", name="Pause").click()
    expect(inside.page.get_by_role("button", name="Resume")).to_be_visible()
    assert state_of(db) is RolloutState.PAUSED
    assert inside.faults == []


def test_the_theme_is_kept_from_page_to_page(inside: Window) -> None:
    inside.open("/")
    inside.page.get_by_role("button", name="Switch between light and dark").click()
    inside.open("/devices/pi-kitchen")
    expect(inside.page.locator("html")).to_have_attribute("data-theme", "dark")
    assert inside.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(16, 20, 27)"
    assert inside.faults == []


def test_the_menu_opens_on_a_phone_by_keyboard(inside: Window) -> None:
    inside.page.set_viewport_size({"width": 390, "height": 844})
    inside.open("/")
    menu = inside.page.get_by_role("button", name="Menu")
    expect(inside.page.get_by_role("link", name="Privacy ledger")).to_be_hidden()
    menu.press("Enter")
    expect(menu).to_have_attribute("aria-expanded", "true")
    expect(inside.page.get_by_role("link", name="Privacy ledger")).to_be_visible()
    inside.page.keyboard.press("Escape")
    expect(inside.page.get_by_role("link", name="Privacy ledger")).to_be_hidden()


def parts_of(db: Database) -> list[RolloutDevice]:
    with db.read() as session:
        return list(session.exec(select(RolloutDevice).where(RolloutDevice.rollout_id == console_data.COMPLETED)))


def state_of(db: Database) -> RolloutState:
    with db.read() as session:
        return session.get_one(Rollout, console_data.HALTED).state
