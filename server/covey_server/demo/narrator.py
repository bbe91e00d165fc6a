"""How the demo speaks: a heading a step, a plain line for what happens, progress bars for what takes time."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.rule import Rule
from rich.table import Table


class Narrator:
    """Writes to the terminal; without one (a pipe, CI) the same words come as plain lines."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False)
        self.started = time.monotonic()

    def step(self, number: int, title: str) -> None:
        """Begin a step."""
        self.console.print()
        self.console.print(Rule(f"[bold]{number}. {title}[/bold]   [dim]{self.elapsed_s():.0f} s[/dim]", align="left"))

    def line(self, text: str) -> None:
        """Say what happened."""
        self.console.print(f"   {text}")

    def good(self, text: str) -> None:
        """Say that something held."""
        self.console.print(f"   [green]✓[/green] {text}")

    def bad(self, text: str) -> None:
        """Say that something did not hold."""
        self.console.print(f"   [red]✗ {text}[/red]")

    def table(self, table: Table) -> None:
        """Show a table."""
        self.console.print(table)

    def elapsed_s(self) -> float:
        """Seconds since the demo began."""
        return time.monotonic() - self.started

    @contextmanager
    def progress(self) -> Iterator[Progress]:
        """Bars for as long as the block runs."""
        columns = (
            TextColumn("   {task.description:<34}"),
            BarColumn(30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, console=self.console, transient=False) as progress:
            yield progress
