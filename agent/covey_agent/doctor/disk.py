"""Checks of the state directory: whose it is, what it lies on, whether there is room, whether what lies in it is whole."""

import hashlib
import os
import pwd
import sqlite3
from pathlib import Path

from covey_agent.adapters.store_sqlite import DATABASE_NAME
from covey_agent.core.machine import serving_slot
from covey_agent.doctor.case import Case
from covey_agent.doctor.finding import Finding, ok, problem, skipped, warning

MIB = 1 << 20
LEAST_FREE = 16 * MIB  # below this, a start may fail
LEAST_INODES = 200
_UNSAFE = {  # kind of file system -> what is wrong with it
    "nfs": "does not lock reliably",
    "nfs4": "does not lock reliably",
    "cifs": "does not lock reliably",
    "smb3": "does not lock reliably",
    "9p": "does not lock reliably",
    "fuse.sshfs": "does not lock reliably",
    "vfat": "keeps neither owners nor rights",
    "exfat": "keeps neither owners nor rights",
}
_FLEETING = {"tmpfs": "a restart", "ramfs": "a restart", "overlay": "the removal of the container"}


def check_state_directory(case: Case) -> Finding:
    """It is there, and this user may use it."""
    folder = case.state_dir
    try:
        status = folder.stat()
    except FileNotFoundError:
        return problem(
            f"{folder} does not exist", "enrol this device: covey-agent enroll --token TOKEN, or name its directory by --state-dir"
        )
    except OSError as exc:
        return problem(f"{folder} cannot be looked at: {exc.strerror}", "run the doctor as the agent's user, e.g. by sudo")
    owner = _user_name(status.st_uid)
    if not folder.is_dir():
        return problem(f"{folder} is no directory", "name the agent's directory by --state-dir")
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        return problem(
            f"{folder} belongs to {owner}, and this user ({_user_name(os.geteuid())}) may not use it",
            f"sudo -u {owner} covey-agent doctor --state-dir {folder}",
        )
    if status.st_mode & 0o022:
        return problem(f"others may write to {folder} (mode {status.st_mode & 0o777:o})", f"chmod go-w {folder}")
    return ok(f"{folder}, of {owner}")


def check_owners(case: Case) -> Finding:
    """Nothing in it belongs to somebody else, as after `sudo covey-agent run` by hand."""
    try:
        expected = case.state_dir.stat().st_uid
        names = ("*", "identity/*", "slots/*", "slots/*/*", "tuf/*", "run/*")
        strangers = sorted(path for pattern in names for path in case.state_dir.glob(pattern) if path.lstat().st_uid != expected)
    except OSError as exc:
        return skipped(f"cannot be looked at: {exc.strerror}")
    if not strangers:
        return ok(f"everything belongs to {_user_name(expected)}")
    owner = _user_name(expected)
    return problem(
        f"{len(strangers)} files belong to somebody else than {owner}, e.g. {strangers[0]}; was the agent run as another user?",
        f"stop the agent, then: sudo chown -R {owner}: {case.state_dir}",
    )


def check_file_system(case: Case) -> Finding:
    """It keeps what it is given."""
    found = find_mount(_read(case.root / "proc/mounts"), case.state_dir.resolve())
    if found is None:
        return skipped("this machine does not tell its file systems")
    point, kind, options = found
    if "ro" in options:
        return problem(
            f"the {kind} file system at {point} is mounted read-only",
            f"look for errors of the disk (dmesg), then: sudo mount -o remount,rw {point}; an SD card that does so again is worn out",
        )
    if kind in _UNSAFE:
        return problem(f"{point} is a {kind} file system, which {_UNSAFE[kind]}", "put the state directory on a local disk")
    if kind in _FLEETING:
        return warning(
            f"{point} is a {kind} file system: identity, models and ledger are lost with {_FLEETING[kind]}",
            "put the state directory on a disk or a volume that stays",
        )
    return ok(f"{kind} at {point}")


def check_room(case: Case) -> Finding:
    """A deployment has room."""
    try:
        disk = os.statvfs(case.state_dir)
    except OSError as exc:
        return skipped(f"cannot be looked at: {exc.strerror}")
    free, reserve = disk.f_bavail * disk.f_frsize, case.settings.deploy.reserve_mb * MIB
    text = f"{free / MIB:.0f} MiB free"
    if free < LEAST_FREE:
        return problem(f"{text}: less than the agent itself needs", f"make room on the disk of {case.state_dir}")
    if free < reserve:
        return warning(
            f"{text}: less than the reserve of {reserve // MIB} MiB, so nothing new is deployed here",
            "make room, or set deploy.reserve_mb lower",
        )
    return ok(text)


def check_inodes(case: Case) -> Finding:
    """New files can be made."""
    try:
        disk = os.statvfs(case.state_dir)
    except OSError as exc:
        return skipped(f"cannot be looked at: {exc.strerror}")
    if disk.f_files == 0:
        return skipped("this file system does not count files")
    if disk.f_favail < LEAST_INODES:
        return problem(f"room for {disk.f_favail} more files only", "remove small files: the disk has space and no inodes")
    return ok(f"room for {disk.f_favail} more files")


def check_database(case: Case) -> Finding:
    """The state database is whole."""
    path = case.state_dir / DATABASE_NAME
    if not path.exists():
        return skipped("the agent has never run here")
    try:
        connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=case.timeout_s)
        try:
            result = str(connection.execute("PRAGMA quick_check(1)").fetchone()[0])
        finally:
            connection.close()
    except sqlite3.Error as exc:
        result = str(exc)
    if result != "ok":
        return problem(
            f"{path} is damaged: {result}",
            "restart the agent: it keeps the file aside, begins a new one and serves on; then look at the disk",
        )
    aside = sorted(case.state_dir.glob(f"{DATABASE_NAME}.unreadable-*[0-9]"))
    if aside:
        return warning(
            f"whole; {len(aside)} damaged before it were set aside, e.g. {aside[-1].name}",
            "a disk or a power supply that damages files does so again: replace it; remove the files when nobody needs them",
        )
    return ok(f"{path.stat().st_size / MIB:.1f} MiB, whole")


def check_models(case: Case) -> Finding:
    """What the serving slot holds is what was verified when it came."""
    if case.is_participant_only:
        return skipped("a partner's agent deploys nothing")
    slot = serving_slot(case.machine) if case.machine else case.slots.load_proven().committed
    note = case.slots.note(slot) if slot else None
    if note is None:
        return skipped("no model is in service")
    path = case.slots.artifact(slot)
    name = f"slot {slot}: {note.model} {note.version} as {note.variant}"
    if not path:
        return problem(f"{name} has no file", "order it again: covey rollout create, or roll back to another release")
    try:
        with Path(path).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as exc:
        return problem(f"{name} cannot be read: {exc.strerror}", "look for errors of the disk (dmesg)")
    if digest != note.artifact:
        return problem(
            f"{name} is not the file that was verified: it is {digest[:12]}, expected {note.artifact[:12]}",
            "the disk has damaged it, or somebody has changed it: deploy the release again, and look for errors of the disk (dmesg)",
        )
    return ok(f"{name}, {Path(path).stat().st_size:,} bytes, whole")


def find_mount(mounts: str, path: Path) -> tuple[str, str, list[str]] | None:
    """(mount point, kind, options) of the file system that `path` lies on, from the text of /proc/mounts."""
    best: tuple[str, str, list[str]] | None = None
    for line in mounts.splitlines():
        fields = line.split()
        if len(fields) < 4:
            continue
        point = fields[1].replace("\\040", " ")
        if path.is_relative_to(point) and (best is None or len(point) >= len(best[0])):  # the last of equals lies on top
            best = (point, fields[2], fields[3].split(","))
    return best


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
