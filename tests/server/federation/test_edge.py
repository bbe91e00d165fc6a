"""The fleet edge without a SuperLink behind it: what never gets as far, and what a caller hears when it is away."""

from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from tests.fakes.server_parts import make_parts

from covey_server.federation.edge import FLEET_PATHS, FleetEdge
from covey_server.settings import EdgeSettings, FlowerSettings, Settings


@pytest.fixture
def http(tmp_path: Path) -> TestClient:
    settings = Settings(work_dir=tmp_path, edge=EdgeSettings(max_fleet_body_mb=1), flower=FlowerSettings(port=1))  # nobody listens on 1
    make_parts(tmp_path, settings=settings)
    app = FastAPI(openapi_url=None)
    app.include_router(FleetEdge(settings).router())
    return TestClient(app)


@pytest.mark.parametrize("call", ["register-node", "unregister-node", "get-fab", "get-run", "", "..", "pull-messages/x", "PULL-MESSAGES"])
def test_other_calls_are_not_relayed(http: TestClient, call: str) -> None:
    assert call not in FLEET_PATHS
    assert http.post(f"/v1/fleet/{call}").status_code in {404, 405}


@pytest.mark.parametrize("path", ["/v1/control/start-run", "/v1/runtime/acquire-task", "/v1/fleet/%2e%2e/control/start-run", "/health"])
def test_other_apis_are_not_reachable(http: TestClient, path: str) -> None:
    assert http.post(path).status_code == 404


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_only_post_passes(http: TestClient, method: str) -> None:
    assert http.request(method, "/v1/fleet/pull-messages").status_code == 405


def test_a_body_over_the_limit_is_refused_by_its_length(http: TestClient) -> None:
    assert http.post("/v1/fleet/push-object", content=b"x" * (1024 * 1024 + 1)).status_code == 413


def test_a_superlink_that_is_away_is_an_error_that_callers_retry(http: TestClient) -> None:
    answer = http.post("/v1/fleet/pull-messages", content=b"")
    assert answer.status_code == 503
    assert answer.headers["content-type"] == "application/problem+json"
