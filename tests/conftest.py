"""What all tests share: which go through a database, and which must share a worker, so that costly fixtures are made once.

pytest-xdist's own `loadgroup` has no effect under pytest 9.2: it marks groups in an attribute that pytest no longer reads. So groups are
files here: the tests of one live fleet, or of one demo, take turns on one worker; every other test is a unit of its own.
"""

import pytest
from xdist.scheduler import LoadScopeScheduling

# Fixtures that open a real SQLite file (and most of them the API on top): milliseconds each, but there are hundreds.
_DATABASE_FIXTURES = frozenset({"parts", "db", "client", "http", "bench", "desk", "keeper", "scene", "door", "app", "fleet", "empty"})
_DATABASE_FILES = frozenset({"test_initialise.py", "test_migrate.py", "test_ledger.py"})
_OWN_FIXTURES = frozenset(
    {"test_fleet_identity.py", "test_kill_points.py", "test_under_systemd.py", "test_upgrade.py", "test_cut_off_upgrades.py"}
)  # a group each; what else is end to end is one


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test that opens a database; before the markers of the command line are applied."""
    for item in items:
        if _DATABASE_FIXTURES & set(getattr(item, "fixturenames", ())) or item.path.name in _DATABASE_FILES:
            item.add_marker(pytest.mark.database)


class GroupScheduling(LoadScopeScheduling):  # type: ignore[misc]  # it publishes no types
    """Like `loadgroup`, by file."""

    def _split_scope(self, nodeid: str) -> str:
        path = nodeid.partition("::")[0]
        name = path.rpartition("/")[2]
        if name in _OWN_FIXTURES:
            return path
        return "end to end" if name.startswith(("test_fleet_", "test_demo_")) and "end_to_end/" in path else nodeid


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> LoadScopeScheduling:
    """Instead of the one that `--dist` names."""
    return GroupScheduling(config, log)
