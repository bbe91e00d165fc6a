"""Logging in and out."""

import re
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from tests.fakes.console_app import build_console, open_database
from tests.fakes.console_data import PASSWORD, add_users
from tests.server.console.conftest import NOW, Desk

from covey_server.access.logins import COOKIE_NAME
from covey_server.access.models import Role


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> TestClient:
    folder: Path = tmp_path_factory.mktemp("door")
    db = open_database(folder)
    with db.begin() as session:
        add_users(session, now=NOW)
    return TestClient(build_console(db, clock=lambda: NOW, folder=folder), follow_redirects=False)


def test_the_right_password_opens_the_page_that_was_wanted(door: TestClient) -> None:
    answer = door.post("/login", data={"user": "olga", "password": PASSWORD, "next": "/devices?q=pi"})
    assert answer.status_code == 303
    assert answer.headers["location"] == "/devices?q=pi"
    cookie = answer.headers["set-cookie"]
    assert cookie.startswith(f"{COOKIE_NAME}=")
    assert {"HttpOnly", "SameSite=lax"} <= set(re.split(r"; ", cookie))
    door.cookies.clear()


def test_a_wrong_password_is_told_without_saying_which_part_is_wrong(door: TestClient) -> None:
    answer = door.post("/login", data={"user": "olga", "password": "guess"})
    assert answer.status_code == 401
    assert "The user name or password is wrong." in answer.text
    assert "set-cookie" not in answer.headers


@pytest.mark.parametrize("wanted", ["//evil.example", "/\\evil.example", "https://evil.example", "javascript:alert(1)", "/\nx", ""])
def test_a_login_never_leads_to_another_site(door: TestClient, wanted: str) -> None:
    page = door.get("/login", params={"next": wanted}).text
    assert '<input type="hidden" name="next" value="/">' in page


def test_a_login_never_leads_to_another_site_whatever_the_form_says(door: TestClient) -> None:
    answer = door.post("/login", data={"user": "olga", "password": PASSWORD, "next": "//evil.example"})
    assert answer.headers["location"] == "/"
    door.cookies.clear()


def test_a_login_form_of_another_site_is_refused(door: TestClient) -> None:
    answer = door.post("/login", data={"user": "olga", "password": PASSWORD}, headers={"Sec-Fetch-Site": "cross-site"})
    assert answer.status_code == 403


def test_a_name_from_the_form_comes_back_as_text(door: TestClient) -> None:
    answer = door.post("/login", data={"user": '"><b>', "password": "x"})
    assert '"><b>' not in answer.text


def test_logging_out_needs_the_token_and_ends_the_login(desk: Desk) -> None:
    assert desk.post("/logout", role=Role.VIEWER, csrf="wrong").status_code == 403
    assert desk.get("/").status_code == 200
    assert desk.post("/logout", role=Role.VIEWER).headers["location"] == "/login"
    assert desk.get("/").status_code == 303
