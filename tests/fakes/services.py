"""Tests that need a real service: they fail without it where all must run (CI), and are skipped on a bare machine."""

import os

import pytest


def require(condition: object, what: str) -> None:
    """Skip the test if `condition` does not hold, or fail it if COVEY_REQUIRE_SERVICES=1."""
    if condition:
        return
    if os.environ.get("COVEY_REQUIRE_SERVICES") == "1":
        pytest.fail(f"this test needs {what}, and COVEY_REQUIRE_SERVICES=1 says that it must run")
    pytest.skip(f"needs {what}")
