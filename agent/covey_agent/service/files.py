"""What `covey-agent install` puts on a machine, and takes away again: files that say the same each time, so that twice is once.

With `root`, everything is written below another folder (an image that is being built) and no program is run.
"""

import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from covey_agent.adapters.slot_files import write_atomically
from covey_agent.errors import StateError
from covey_agent.service.unit import UNIT_NAME, USER, Place, render_sysusers, render_tmpfiles, render_unit

_SYSTEMD_RUNS = Path("/run/systemd/system")
TIMEOUT_S = 90.0


@dataclass(frozen=True, slots=True)
class ServiceFile:
    """One file and what stands in it."""

    path: Path
    text: str


@dataclass(frozen=True, slots=True)
class Done:
    """One thing that was, or would be, done: `what` was written, unchanged, removed, ran, failed or skipped."""

    what: str
    subject: str
    detail: str = ""


def service_files(place: Place, root: Path) -> list[ServiceFile]:
    """Every file of a service."""
    if place.of_user:
        return [ServiceFile(user_units() / UNIT_NAME, render_unit(place))]
    return [
        ServiceFile(root / "etc/sysusers.d/covey-agent.conf", render_sysusers(place)),
        ServiceFile(root / "etc/tmpfiles.d/covey-agent.conf", render_tmpfiles(place)),
        ServiceFile(root / "etc/systemd/system" / UNIT_NAME, render_unit(place)),
    ]


def user_units() -> Path:
    """Where one user's own units are."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path("~/.config").expanduser()) / "systemd" / "user"


def write_files(files: Sequence[ServiceFile], *, dry_run: bool) -> list[Done]:
    """Write what differs. Raises StateError."""
    done = []
    for file in files:
        try:
            same = file.path.exists() and file.path.read_text("utf-8") == file.text
            if not same and not dry_run:
                write_atomically(file.path, file.text.encode("utf-8"), mode=0o644)
                file.path.chmod(0o644)  # whatever the umask
        except OSError as exc:
            raise StateError(f"cannot write {file.path}: {exc.strerror}; to install for the whole machine, be root") from exc
        done.append(Done("unchanged" if same else "written", str(file.path)))
    return done


def remove_files(files: Sequence[ServiceFile], *, dry_run: bool) -> list[Done]:
    """Remove what is there. Raises StateError."""
    done = []
    for file in files:
        if not file.path.exists():
            continue
        try:
            if not dry_run:
                file.path.unlink()
        except OSError as exc:
            raise StateError(f"cannot remove {file.path}: {exc.strerror}; to uninstall for the whole machine, be root") from exc
        done.append(Done("removed", str(file.path)))
    return done


def account_commands() -> list[list[str]]:
    """Make the user and the folder."""
    return [["systemd-sysusers", "covey-agent.conf"], ["systemd-tmpfiles", "--create", "covey-agent.conf"]]


def start_commands(place: Place, *, start: bool) -> list[list[str]]:
    """Let systemd know the unit, and begin with the next boot or now."""
    systemctl = systemctl_of(place)
    enable = [*systemctl, "enable", UNIT_NAME]
    return [[*systemctl, "daemon-reload"], [*enable, "--now"] if start else enable]


def stop_commands(place: Place) -> list[list[str]]:
    """End it, now and at boot."""
    return [[*systemctl_of(place), "disable", "--now", UNIT_NAME]]


def systemctl_of(place: Place) -> list[str]:
    """systemctl for the machine's manager or the user's."""
    return ["systemctl", "--user"] if place.of_user else ["systemctl"]


def run_commands(commands: Sequence[Sequence[str]], *, dry_run: bool, skip: str = "") -> list[Done]:
    """Run each; one that fails ends the row, because the next one needs it. `skip` says why none can be run here."""
    done = []
    for command in commands:
        text = " ".join(command)
        if skip or dry_run:
            done.append(Done("skipped" if skip else "would run", text, skip))
            continue
        if shutil.which(command[0]) is None:
            done.append(Done("failed", text, f"there is no {command[0]} here"))
            break
        result = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
        if result.returncode != 0:
            done.append(Done("failed", text, (result.stderr or result.stdout).strip()[-300:]))
            break
        done.append(Done("ran", text))
    return done


def why_not_systemd(place: Place, root: Path) -> str:
    """Why systemctl cannot be used now, or ""."""
    if not place.of_user and root != Path("/"):
        return f"{root} is not this machine's root"
    return "" if _SYSTEMD_RUNS.is_dir() else "systemd does not run this machine"


def remove_account() -> list[list[str]]:
    """Take the user away."""
    return [["userdel", USER]]
