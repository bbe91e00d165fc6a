"""What all tests share: which of them go through a database, so that `make unit` can leave them to `make test`."""

import pytest

# Fixtures that open a real SQLite file (and most of them the API on top): milliseconds each, but there are hundreds.
_DATABASE_FIXTURES = frozenset({"parts", "db", "client", "http", "bench", "desk", "keeper", "scene", "door", "app", "fleet", "empty"})
_DATABASE_FILES = frozenset({"test_initialise.py", "test_migrate.py", "test_ledger.py"})


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test that opens a database; before the markers of the command line are applied."""
    for item in items:
        if _DATABASE_FIXTURES & set(getattr(item, "fixturenames", ())) or item.path.name in _DATABASE_FILES:
            item.add_marker(pytest.mark.database)
