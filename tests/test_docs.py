"""Every command in the README and the guides exists and takes the options it is shown with; every link leads somewhere."""

import contextlib
import io
import re
import shlex
from importlib import import_module
from pathlib import Path

import click
import pytest
import typer

from covey_agent.cli import COMMANDS as AGENT_COMMANDS
from covey_server.cli.main import build

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")])
_BLOCK = re.compile(r"```(?:sh|bash|console|shell)\n(.*?)```", re.DOTALL)
_LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")


def _lines(program: str) -> list[tuple[str, str]]:
    """(page, command line) of every command of one program in a shell block, continuation lines joined."""
    found = []
    for page in PAGES:
        for block in _BLOCK.findall(page.read_text("utf-8")):
            for line in block.replace("\\\n", " ").splitlines():
                for part in line.split(" && "):
                    words = part.split("#")[0].split()
                    while words and ("=" in words[0] or words[0] in {"sudo", "$"}):
                        words.pop(0)
                    if words and words[0] in {program, f".venv/bin/{program}", f"covey/bin/{program}"}:
                        found.append((page.relative_to(ROOT).as_posix(), " ".join(words)))
    return found


@pytest.mark.parametrize(("page", "line"), _lines("covey"))
def test_a_command_of_the_server_can_be_typed(page: str, line: str) -> None:
    words = shlex.split(line)[1:]
    command: click.Command = typer.main.get_command(build())
    while isinstance(command, click.Group):
        assert words, f"{page}: {line} needs a sub-command"
        name = words.pop(0)
        found = command.get_command(click.Context(command), name)
        assert found is not None, f"{page}: covey has no command {name}"
        command = found
    options = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    used = {word.split("=")[0] for word in words if word.startswith("--")}
    assert used <= options | {"--help"}, f"{page}: {line}"


@pytest.mark.parametrize(("page", "line"), _lines("covey-agent"))
def test_a_command_of_the_agent_can_be_typed(page: str, line: str) -> None:
    words = shlex.split(line)[1:]
    name = next((word for word in words if not word.startswith("-")), "")
    assert name in AGENT_COMMANDS, f"{page}: covey-agent has no command {name}"
    import_module(f"covey_agent.commands.{name}")
    known = _help_of("covey_agent.cli", [name, *_actions(words, name)])
    used = {word.split("=")[0] for word in words if word.startswith("--")} - {"--state-dir", "--json"}
    assert all(option in known for option in used), f"{page}: {line}"


@pytest.mark.parametrize(("page", "line"), _lines("covey-quantize"))
def test_a_command_of_the_quantizer_can_be_typed(page: str, line: str) -> None:
    known = _help_of("covey_quantize.cli", [])
    used = {word.split("=")[0] for word in shlex.split(line) if word.startswith("--")}
    assert all(option in known for option in used), f"{page}: {line}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    broken = [link for link in _LINK.findall(page.read_text("utf-8")) if not (page.parent / link.strip()).exists()]
    assert broken == []


def test_pages_hold_commands_at_all() -> None:
    assert len(_lines("covey")) >= 10
    assert len(_lines("covey-agent")) >= 5


def _actions(words: list[str], name: str) -> list[str]:
    """The sub-command's own action (`policy allow-task`), for commands that have any."""
    after = words[words.index(name) + 1 :]
    return after[:1] if name in {"policy", "data", "config", "quarantine"} and after and not after[0].startswith("-") else []


def _help_of(module: str, words: list[str]) -> str:
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        entry = import_module(module)
        if module == "covey_agent.cli":
            entry.main([*words, "--help"])
        else:
            _run_typer(entry)
    return text.getvalue()


def _run_typer(entry: object) -> None:
    import sys

    before = sys.argv
    sys.argv = ["covey-quantize", "--help"]
    try:
        entry.main()  # type: ignore[attr-defined]  # covey_quantize.cli:main
    finally:
        sys.argv = before
