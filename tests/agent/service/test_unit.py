"""The unit: one template, which systemd itself finds clean and little exposed."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.fakes.services import require

from covey_agent.service.unit import UNIT_NAME, Place, render_sysusers, render_tmpfiles, render_unit

MAX_EXPOSURE = 20  # tenths
SERVICE = Place(launcher=sys.executable, state_dir="/var/lib/covey-agent")
PLACES = {
    "service": SERVICE,
    "trains": Place(launcher=sys.executable, state_dir="/var/lib/covey-agent", trains=True),
    "elsewhere": Place(launcher=sys.executable, state_dir="/srv/100% covey/agent", in_home=True),
    "user": Place(launcher=sys.executable, state_dir="/home/ann/.local/state/covey-agent", of_user=True),
}


def analyse(folder: Path, place: Place, *words: str) -> subprocess.CompletedProcess[str]:
    require(shutil.which("systemd-analyze"), "systemd-analyze (package systemd)")
    unit = folder / UNIT_NAME
    unit.write_text(render_unit(place))
    return subprocess.run(
        ["systemd-analyze", *words, str(unit)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"XDG_RUNTIME_DIR": str(folder)},
    )


@pytest.mark.parametrize("name", PLACES)
def test_systemd_finds_no_fault_in_it(tmp_path: Path, name: str) -> None:
    options = ["--man=no", "--recursive-errors=no"] + (["--user"] if PLACES[name].of_user else [])
    done = analyse(tmp_path, PLACES[name], *options, "verify")
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@pytest.mark.parametrize("name", ["service", "trains", "elsewhere"])
def test_it_is_little_exposed(tmp_path: Path, name: str) -> None:
    done = analyse(tmp_path, PLACES[name], "security", "--offline=true", f"--threshold={MAX_EXPOSURE}")
    assert done.returncode == 0, done.stdout


def test_only_a_trainer_may_make_code_at_run_time() -> None:
    assert "\nMemoryDenyWriteExecute=yes\n" in render_unit(SERVICE)
    assert "\nMemoryDenyWriteExecute" not in render_unit(PLACES["trains"])


def test_it_writes_to_its_own_folder_alone() -> None:
    assert "StateDirectory=covey-agent\nStateDirectoryMode=0710\n" in render_unit(SERVICE)
    assert 'ReadWritePaths="/srv/100%% covey/agent"\n' in render_unit(PLACES["elsewhere"])
    assert "ProtectHome=yes" in render_unit(SERVICE)
    assert "ProtectHome=read-only" in render_unit(PLACES["elsewhere"])


def test_user_and_folder_are_described_for_systemd() -> None:
    assert 'u covey-agent - "Covey agent" "/var/lib/covey-agent"\n' in render_sysusers(SERVICE)
    assert 'd "/var/lib/covey-agent" 0710 covey-agent covey-agent\n' in render_tmpfiles(SERVICE)
