"""Every page: only for those who are logged in, under a strict policy, with whatever the fleet holds."""

import re

import pytest
from tests.fakes.console_data import COMPLETED, HALTED, RUN, XSS
from tests.server.console.conftest import Desk

from covey_server.access.models import Role

PAGES = (
    "/",
    "/devices",
    "/devices/pi-kitchen",
    "/devices/jetson-dock",
    "/devices/clinic-north",
    "/releases",
    "/releases/1",
    "/rollouts",
    f"/rollouts/{COMPLETED}",
    f"/rollouts/{HALTED}",
    "/runs",
    f"/runs/{RUN}",
    "/ledger",
    "/alerts",
    "/audit",
)
LISTS = ("/", "/devices", "/releases", "/rollouts", "/runs", "/ledger", "/alerts", "/audit")


@pytest.mark.parametrize("path", [*PAGES, "/events", f"/runs/{RUN}/charts", "/devices/pi-kitchen/charts"])
def test_a_page_needs_a_login(fleet: Desk, path: str) -> None:
    answer = fleet.get(path, role=None)
    assert answer.status_code == 303
    assert answer.headers["location"].startswith("/login")


def test_a_fragment_without_a_login_leads_the_browser_to_the_login(fleet: Desk) -> None:
    answer = fleet.client.get("/devices?q=a", headers={"HX-Request": "true", "HX-Target": "devices_live"})
    assert answer.headers["hx-redirect"] == "/login?next=/devices%3Fq%3Da"


@pytest.mark.parametrize("path", PAGES)
def test_a_page_allows_no_inline_script_and_no_frame(fleet: Desk, path: str) -> None:
    answer = fleet.get(path)
    assert answer.status_code == 200
    assert "script-src 'self';" in answer.headers["content-security-policy"]
    assert "unsafe" not in answer.headers["content-security-policy"]
    assert answer.headers["x-frame-options"] == "DENY"
    assert answer.headers["cache-control"] == "no-store"
    assert not re.search(r"<script(?![^>]*\bsrc=)|\sstyle=|\son[a-z]+=\"", answer.text.replace("&#34;", ""))


@pytest.mark.parametrize("path", ["/devices", "/devices/jetson-dock"])
def test_what_a_device_says_is_text_and_never_markup(fleet: Desk, path: str) -> None:
    text = fleet.get(path).text
    assert XSS not in text
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert(2)" in text


@pytest.mark.parametrize("path", LISTS)
def test_an_empty_fleet_has_every_page(empty: Desk, path: str) -> None:
    assert empty.get(path).status_code == 200


def test_an_empty_fleet_says_which_command_comes_next(empty: Desk) -> None:
    assert "covey device invite pi-1" in empty.get("/devices").text


@pytest.mark.parametrize("path", ["/devices/nobody", "/releases/99", "/rollouts/none", "/runs/none"])
def test_what_does_not_exist_is_a_page_that_says_so(fleet: Desk, path: str) -> None:
    answer = fleet.get(path)
    assert answer.status_code == 404
    assert "There is no" in answer.text
    assert answer.headers["x-frame-options"] == "DENY"


@pytest.mark.parametrize(
    "path", ["/releases/9999999999999999999", "/alerts?before=-1", "/ledger?before=x", "/audit?before=9999999999999999999"]
)
def test_a_number_that_no_column_can_hold_is_refused(fleet: Desk, path: str) -> None:
    assert fleet.get(path).status_code == 422


def test_a_fragment_is_the_part_of_its_page(fleet: Desk) -> None:
    fragment = fleet.get(f"/rollouts/{HALTED}", part="rollout_live").text
    assert "<html" not in fragment
    assert fragment.strip() in fleet.get(f"/rollouts/{HALTED}").text


def test_a_block_that_is_no_live_part_cannot_be_asked_for(fleet: Desk) -> None:
    assert "<html" in fleet.get("/", part="main").text


def test_a_page_names_the_live_event_behind_which_it_begins(fleet: Desk) -> None:
    assert re.search(r'<body data-event="\d+"', fleet.get("/").text)


def test_a_halted_rollout_tells_its_reason_first(fleet: Desk) -> None:
    text = fleet.get(f"/rollouts/{HALTED}").text
    assert "Halted by a rule" in text
    assert text.index("canary: 1 of 1 devices failed") < text.index("<table")


def test_a_run_shows_the_price_of_privacy(fleet: Desk) -> None:
    text = fleet.get(f"/runs/{RUN}").text
    assert "83.1 %" in text
    assert "this run: −9.0 points" in text  # noqa: RUF001 - a true minus sign


def test_a_run_is_charted_beside_its_references(fleet: Desk) -> None:
    chart = fleet.get(f"/runs/{RUN}/charts").json()["charts"]["accuracy"]
    assert chart["x"] == list(range(9))
    assert [(one["label"], one["values"][8], one["dashed"]) for one in chart["series"]] == [
        ("Federated, private", 83.1, False),
        ("Federated, no privacy", 92.1, True),
        ("Central, all data in one place", 95.0, True),
    ]


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("q=KITCHEN", {"pi-kitchen"}),
        ("q=oslo", {"jetson-dock"}),
        ("q=%25", set()),
        ("presence=offline", {"pi-lab"}),
        ("profile=partner", {"clinic-north", "clinic-south"}),
        ("serving=digits:1&q=pi-", {"pi-kitchen", "pi-lab"}),
        ("serving=digits:x", set()),
        ("state=rolled_back", {"jetson-dock"}),
    ],
)
def test_devices_are_narrowed_to_what_is_asked_for(fleet: Desk, query: str, found: set[str]) -> None:
    text = fleet.get(f"/devices?{query}", part="devices_live").text
    assert set(re.findall(r'href="/devices/([a-z-]+)"', text)) == found


def test_buttons_are_for_operators(desk: Desk) -> None:
    assert "/acknowledge" not in desk.get("/alerts").text
    assert "/acknowledge" in desk.get("/alerts", role=Role.OPERATOR).text
