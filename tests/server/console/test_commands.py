"""Commands that pages tell people to type: they exist and take these options."""

import re
import shlex
from pathlib import Path

import click
import pytest
import typer

from covey_server.cli.main import build
from covey_server.console import templating

_TEMPLATES = Path(templating.__file__).parent / "templates"
_COMMAND = re.compile(r"'(covey [^']+)'")


def commands() -> list[str]:
    found = {command for path in sorted(_TEMPLATES.glob("*.html")) for command in _COMMAND.findall(path.read_text("utf-8"))}
    return sorted(found)


def test_pages_tell_commands() -> None:
    assert len(commands()) >= 5


@pytest.mark.parametrize("text", commands())
def test_a_command_that_a_page_tells_can_be_typed(text: str) -> None:
    words = shlex.split(text)[1:]
    command: click.Command = typer.main.get_command(build())
    while isinstance(command, click.Group):
        name = words.pop(0)
        found = command.get_command(click.Context(command), name)
        assert found is not None, f"covey has no command {name}"
        command = found
    options = {name for parameter in command.params for name in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= options
    required = {parameter.opts[0] for parameter in command.params if parameter.required and parameter.param_type_name == "option"}
    assert required <= set(words) or text.endswith("=")
