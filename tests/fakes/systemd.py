"""A real systemd as process 1 of namespaces of its own: its units, its users, its journal, and nothing of this machine's.

    with running_systemd() as systemd:
        systemd.run("systemctl", "start", "covey-agent")

Own: processes, mounts, control groups, host name. Shared: the network (a test's broker is on the loopback) and what lies on the disk, but
for `/etc` (changes go to memory), `/run`, `/var/lib` and `/var/log` (empty, in memory).
"""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.fakes.nats_broker import wait_until
from tests.fakes.services import require

_SYSTEMD = Path("/lib/systemd/systemd")
_EMPTY_TARGETS = ("sysinit", "basic", "multi-user", "network", "shutdown")
_BOOT = """
set -e
mount --make-rprivate /
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mkdir /sys/fs/cgroup/$1
echo 0 > /sys/fs/cgroup/$1/cgroup.procs
exec unshare --cgroup sh -c '
set -e
umount /sys/fs/cgroup
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t tmpfs tmpfs /run
mkdir -p /run/systemd/system /run/etc /run/work
mount -t overlay overlay -o lowerdir=/etc,upperdir=/run/etc,workdir=/run/work /etc
mount -t tmpfs -o mode=755 tmpfs /etc/systemd/system
mount -t tmpfs -o mode=755 tmpfs /var/lib
mount -t tmpfs -o mode=755 tmpfs /var/log
exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin container=test SYSTEMD_UNIT_PATH=/etc/systemd/system:"$0" \\
    /lib/systemd/systemd --system --unit=multi-user.target --show-status=no --log-target=console' "$2"
"""
_CLEAN = 'mount --make-rprivate / && mount -t cgroup2 cgroup2 /sys/fs/cgroup && find "/sys/fs/cgroup/$1" -depth -type d -exec rmdir {} +'


@dataclass(frozen=True, slots=True)
class Systemd:
    """What a test can do with it."""

    pid: int  # of its process 1, seen from here

    @property
    def root(self) -> Path:
        """Its file system, seen from here."""
        return Path(f"/proc/{self.pid}/root")

    def run(self, *command: str, check: bool = True) -> str:
        """A command inside, as root; its output."""
        inside = ["nsenter", "-t", str(self.pid), "-p", "-m", "-C", "-u", "-i", *command]
        done = subprocess.run(inside, capture_output=True, text=True, check=False, timeout=120, cwd="/")
        assert not check or done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def show(self, unit: str, name: str) -> str:
        """One property of a unit."""
        return self.run("systemctl", "show", "--value", "--property", name, unit).strip()

    def add_unit(self, name: str, text: str) -> None:
        """A unit, or with `NAME.d/x.conf` a part of one."""
        path = self.root / "etc/systemd/system" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)


@contextmanager
def running_systemd() -> Iterator[Systemd]:
    """Boot one. Skips where the kernel does not let us (no root, no namespaces)."""
    require(_SYSTEMD.exists() and shutil.which("nsenter"), "systemd (package systemd)")
    if os.geteuid() != 0 or subprocess.run(["unshare", "--mount", "--pid", "--cgroup", "--fork", "true"], check=False).returncode != 0:
        pytest.skip("needs the right to make namespaces")
    folder = Path(tempfile.mkdtemp(prefix="covey-units-"))
    group = folder.name
    _write_units(folder)
    log = (folder / "log").open("wb")
    command = ["unshare", "--pid", "--mount", "--uts", "--ipc", "--fork", "--kill-child", "--mount-proc", "sh", "-c", _BOOT, "sh", group]
    process = subprocess.Popen([*command, str(folder)], stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    try:
        systemd = Systemd(_wait_for_first_process(process, folder))
        wait_until(
            lambda: systemd.run("systemctl", "is-system-running", check=False).strip() == "running", what=(folder / "log").read_text()
        )
        yield systemd
    finally:
        process.kill()  # and with it process 1, and with that one everything inside
        process.wait()
        log.close()
        clean = ["unshare", "--mount", "sh", "-c", _CLEAN, "sh", group]
        wait_until(lambda: subprocess.run(clean, capture_output=True, check=False).returncode == 0, what="the control groups to go")
        shutil.rmtree(folder)


def _write_units(folder: Path) -> None:
    folder.chmod(0o755)
    for name in _EMPTY_TARGETS:
        (folder / f"{name}.target").write_text("[Unit]\nDefaultDependencies=no\n")
    (folder / "multi-user.target").write_text("[Unit]\nDefaultDependencies=no\nWants=systemd-journald.socket systemd-journald.service\n")
    (folder / "systemd-journald.socket").write_text(
        "[Unit]\nDefaultDependencies=no\n[Socket]\nListenDatagram=/run/systemd/journal/socket\nListenStream=/run/systemd/journal/stdout\n"
        "PassCredentials=yes\nService=systemd-journald.service\n"
    )
    (folder / "systemd-journald.service").write_text(
        "[Unit]\nDefaultDependencies=no\nRequires=systemd-journald.socket\nAfter=systemd-journald.socket\n"
        "[Service]\nType=notify\nExecStart=/lib/systemd/systemd-journald\nSockets=systemd-journald.socket\nStandardOutput=null\n"
    )


def _wait_for_first_process(process: "subprocess.Popen[bytes]", folder: Path) -> int:
    """The one child of `unshare` becomes systemd."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")

    def find() -> int:
        assert process.poll() is None, (folder / "log").read_text()
        pids = children.read_text().split()
        return int(pids[0]) if pids and Path(f"/proc/{pids[0]}/comm").read_text().strip() == "systemd" else 0

    wait_until(find, what="systemd to start")
    return find()
