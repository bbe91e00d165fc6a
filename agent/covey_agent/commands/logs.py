"""`covey-agent logs`: what the agent wrote, from the journal, which keeps and rotates it; or from a file where there is no journal."""

import argparse
import json
import os
import shutil
import subprocess
import time
from collections import deque
from collections.abc import Callable, Generator
from pathlib import Path
from typing import IO

from covey_agent.commands.output import say
from covey_agent.errors import StateError
from covey_agent.service.files import user_units
from covey_agent.service.unit import UNIT_NAME
from covey_agent.settings import find_state_dir

FILE_NAME = "agent.log"
POLL_S = 0.5
_SYSTEM_UNITS = Path("/etc/systemd/system")
_FIELDS = ("__REALTIME_TIMESTAMP", "PRIORITY", "MESSAGE", "_PID")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("-n", "--lines", type=int, default=50, metavar="N", help="how many of the latest lines; default: 50")
    parser.add_argument("-f", "--follow", action="store_true", help="go on as more is written")
    parser.add_argument("--file", metavar="PATH", help=f"a log file; default: the journal, else {FILE_NAME} in the state directory")


def run(options: argparse.Namespace) -> int:
    """Print, and follow if asked to."""
    file = Path(options.file) if options.file else find_state_dir(options.state_dir) / FILE_NAME
    scope = [] if options.file else journal_scope(_SYSTEM_UNITS, user_units())
    try:
        if scope:
            return show_journal(scope, lines=options.lines, follow=options.follow, as_json=options.json)
        if not file.is_file():
            raise StateError(
                f"there is no journal of {UNIT_NAME} here and no {file}; `covey-agent install` makes the service, and without one "
                f"`covey-agent run 2>> {file}` keeps a log"
            )
        show_file(file, lines=options.lines, follow=options.follow, as_json=options.json)
    except KeyboardInterrupt:  # the way to end -f
        return 0
    return 0


def journal_scope(system_units: Path, own_units: Path) -> list[str]:
    """journalctl's options for the unit that is installed; empty if there is none, or no journalctl."""
    if shutil.which("journalctl") is None:
        return []
    if (system_units / UNIT_NAME).exists():
        return ["--unit", UNIT_NAME]
    return ["--user", "--unit", UNIT_NAME] if (own_units / UNIT_NAME).exists() else []


def show_journal(scope: list[str], *, lines: int, follow: bool, as_json: bool) -> int:
    """Let journalctl write it; JSON: one object a line, with the same names as of a file."""
    command = ["journalctl", "--quiet", "--no-pager", *scope, "--lines", str(lines), *(["--follow"] if follow else [])]
    if not as_json:
        return subprocess.run([*command, "--output", "short-iso"], check=False).returncode
    with subprocess.Popen([*command, "--output", "json", f"--output-fields={','.join(_FIELDS)}"], stdout=subprocess.PIPE) as process:
        for line in process.stdout or ():
            say(json.dumps(read_entry(line), ensure_ascii=False))
    return process.returncode


def read_entry(line: bytes) -> dict[str, object]:
    """One entry of journalctl as plain values. A message that is not UTF-8 comes as a list of bytes."""
    entry = json.loads(line)
    message = entry.get("MESSAGE")
    text = bytes(message).decode("utf-8", "replace") if isinstance(message, list) else str(message or "")
    return {
        "at": int(entry.get("__REALTIME_TIMESTAMP", 0)) // 1000,
        "priority": int(entry.get("PRIORITY", 6)),
        "pid": int(entry.get("_PID", 0)),
        "message": text,
    }


def show_file(path: Path, *, lines: int, follow: bool, as_json: bool) -> None:
    """The end of a file. Raises StateError."""

    def tell(line: bytes) -> None:
        text = line.decode("utf-8", "replace").rstrip("\n")
        say(json.dumps({"message": text}, ensure_ascii=False) if as_json else text)

    try:
        with path.open("rb") as file:
            for line in deque(file, maxlen=max(0, lines)):
                tell(line)
            place = file.tell()
    except OSError as exc:
        raise StateError(f"cannot read {path}: {exc.strerror}") from exc
    if follow:
        for line in follow_file(path, place):
            tell(line)


def follow_file(path: Path, place: int, *, pause: Callable[[float], None] = time.sleep) -> Generator[bytes, None, None]:
    """Lines that are added after `place`, for ever; a file that was rotated away or emptied is begun anew."""
    file = path.open("rb")
    try:
        file.seek(place)
        rest = b""
        while True:
            if line := file.readline():
                rest += line
                if rest.endswith(b"\n"):
                    yield rest
                    rest = b""
            elif _was_replaced(path, file):
                file.close()
                file = path.open("rb")
            else:
                pause(POLL_S)
    finally:
        file.close()


def _was_replaced(path: Path, file: IO[bytes]) -> bool:
    try:
        status = path.stat()
    except FileNotFoundError:  # between the two steps of a rotation
        return False
    return status.st_ino != os.fstat(file.fileno()).st_ino or status.st_size < file.tell()
