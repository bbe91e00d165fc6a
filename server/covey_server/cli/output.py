"""How every command answers: a table for people, JSON for programs, one exit code a kind of failure.

What is shown may come from devices (reasons, labels): it is text, never markup, and cannot command the terminal.
"""

import json
from collections.abc import Iterable, Sequence
from enum import IntEnum
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]

console = Console()
error_console = Console(stderr=True)


class ExitCode(IntEnum):
    """What a command's exit code says."""

    OK = 0
    FAILED = 1
    USAGE = 2
    NOT_FOUND = 3
    REFUSED = 4  # not allowed, or forbidden by a rule
    UNREACHABLE = 5  # the server did not answer


class CommandError(Exception):
    """A command failed; the message is for the user."""

    def __init__(self, message: str, code: ExitCode = ExitCode.FAILED) -> None:
        super().__init__(message)
        self.code = code


def show_json(data: Any) -> None:
    """Print data as JSON, one document."""
    typer.echo(json.dumps(data, indent=2, default=str, ensure_ascii=False))


def show_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print rows as a table; an empty one says so."""
    table = Table(title=plain(title), title_justify="left", header_style="bold", box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    count = 0
    for row in rows:
        table.add_row(*(plain("" if cell is None else str(cell)) for cell in row))
        count += 1
    console.print(table if count else plain(f"{title}: none"))


def say(message: str) -> None:
    """A line for the user that is not the result; on standard error, so that output can be piped."""
    error_console.print(plain(message), soft_wrap=True)


def complain(message: str, *, what: str = "error") -> None:
    """A line about what went wrong."""
    error_console.print(Text.assemble((f"{what}: ", "red"), plain(message)), soft_wrap=True)


def plain(text: str) -> Text:
    """`text` as it stands: brackets are no markup, control characters are shown and not obeyed."""
    return Text("".join(c if c.isprintable() or c == "\n" else f"\\x{ord(c):02x}" for c in text))
