"""What commands print: words for people, or JSON for programs."""

import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime


def say(text: str = "") -> None:
    """One line to standard output."""
    sys.stdout.write(text + "\n")


def say_json(value: object) -> None:
    """One JSON document to standard output."""
    say(json.dumps(value, indent=2, ensure_ascii=False))


def say_table(rows: Sequence[Sequence[object]], header: Sequence[str]) -> None:
    """Columns, aligned."""
    lines = [[str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    for line in lines:
        say("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def show_time(millis: int) -> str:
    """A time as people read it; empty for none."""
    return datetime.fromtimestamp(millis / 1000, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S %Z") if millis else ""
