"""The guide's settings are real ones."""

import re
import tomllib
from pathlib import Path

from covey_agent.cli import COMMANDS
from covey_agent.settings import load_settings

GUIDE = (Path(__file__).parents[2] / "docs" / "agent.md").read_text()


def test_example_settings_are_accepted(tmp_path: Path) -> None:
    example = re.search(r"```toml\n(.*?)```", GUIDE, re.DOTALL)
    assert example is not None
    tomllib.loads(example.group(1))
    (tmp_path / "agent.toml").write_text(example.group(1))
    assert load_settings(tmp_path, {}).inference.tcp_port == 8090


def test_every_command_is_described() -> None:
    assert set(re.findall(r"`covey-agent ([a-z]+)", GUIDE)) == set(COMMANDS)
