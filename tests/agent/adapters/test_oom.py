"""The kernel's counters of processes that it ended for lack of memory."""

from pathlib import Path

import pytest

from covey_agent.adapters.oom import count_oom_kills


@pytest.fixture
def roots(tmp_path: Path) -> tuple[Path, Path]:
    proc, groups = tmp_path / "proc", tmp_path / "groups"
    (proc / "self").mkdir(parents=True)
    (proc / "vmstat").write_text("nr_free_pages 17\noom_kill 9\nzone_reclaim_success 0\n")
    return proc, groups


def test_the_own_group_of_version_2_counts_its_own(roots: tuple[Path, Path]) -> None:
    proc, groups = roots
    (proc / "self" / "cgroup").write_text("0::/system.slice/covey-agent.service\n")
    folder = groups / "system.slice" / "covey-agent.service"
    folder.mkdir(parents=True)
    (folder / "memory.events").write_text("low 0\nhigh 0\nmax 12\noom 3\noom_kill 2\noom_group_kill 0\n")
    assert count_oom_kills(proc, groups) == 2


def test_the_own_group_of_version_1_counts_its_own(roots: tuple[Path, Path]) -> None:
    proc, groups = roots
    (proc / "self" / "cgroup").write_text("5:cpu,cpuacct:/x\n4:memory:/agent\n0::/\n")
    (groups / "memory" / "agent").mkdir(parents=True)
    (groups / "memory" / "agent" / "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 5\n")
    assert count_oom_kills(proc, groups) == 5


def test_without_a_group_the_machine_counts(roots: tuple[Path, Path]) -> None:
    assert count_oom_kills(*roots) == 9


def test_where_nobody_counts_it_is_zero(tmp_path: Path) -> None:
    assert count_oom_kills(tmp_path, tmp_path) == 0


def test_this_kernel_counts() -> None:
    assert "oom_kill " in Path("/proc/vmstat").read_text()
    assert count_oom_kills() >= 0
