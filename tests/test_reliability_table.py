"""The table of failure scenarios in docs/reliability.md: all 34 are there, and every test that a row names exists."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
_ROW = re.compile(r"^\| (\d+) \| (.+?) \| (.+?) \| (.+) \|$", re.MULTILINE)
_TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")
_FILE = re.compile(r"`((?:benchmarks|scripts)/[\w/]+\.(?:py|sh))`")


def rows() -> list[tuple[int, str]]:
    """(number, who shows it) of every scenario."""
    text = (ROOT / "docs" / "reliability.md").read_text("utf-8")
    return [(int(match.group(1)), match.group(4)) for match in _ROW.finditer(text)]


def functions_of(path: Path) -> set[str]:
    """Every function that a test file defines."""
    return {node.name for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.FunctionDef)}


def test_all_scenarios_are_listed_once() -> None:
    assert [number for number, _ in rows()] == list(range(1, 35))


@pytest.mark.parametrize(("number", "shown"), rows(), ids=lambda value: str(value) if isinstance(value, int) else "")
def test_each_scenario_names_a_test_that_exists(number: int, shown: str) -> None:
    named = _TEST.findall(shown)
    assert named, f"scenario {number} names no test"
    for file, function in named:
        path = ROOT / file
        assert path.is_file(), f"scenario {number}: {file} does not exist"
        assert function in functions_of(path), f"scenario {number}: {file} has no {function}"
    for file in _FILE.findall(shown):
        assert (ROOT / file).is_file(), f"scenario {number}: {file} does not exist"
