"""Password hashing as cheap as argon2 allows: the real one is slow on purpose, once for every login of every test.

Use it in a conftest.py:  `from tests.fakes.passwords import cheap_passwords`  (the fixture is autouse).
"""

import pytest
from argon2 import PasswordHasher

from covey_server.access import passwords


@pytest.fixture(autouse=True)
def cheap_passwords(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the hasher's cost, not its algorithm."""
    monkeypatch.setattr(passwords, "_hasher", PasswordHasher(time_cost=1, memory_cost=8, parallelism=1))
