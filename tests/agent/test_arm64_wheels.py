"""Every dependency of the `agent` extra exists as a wheel for aarch64: nobody compiles numpy on a Raspberry Pi.

Asks the package index that pip is set to, for metadata only. Skips when none answers.
"""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
# What runs there: (Python, glibc, pinned). Raspberry Pi OS and Debian 12 and 13; JetPack 6 is Ubuntu 22.04, whose Python has other wheels.
TARGETS = {"debian-12": ("3.11", 36, True), "debian-13": ("3.13", 41, True), "jetpack-6": ("3.10", 35, False)}


def resolve(requirements: list[str], python: str, glibc: int, *, is_pinned: bool) -> subprocess.CompletedProcess[str]:
    platforms = [f"manylinux_2_{minor}_aarch64" for minor in range(glibc, 16, -1)] + ["manylinux2014_aarch64"]
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--dry-run", "--quiet", "--ignore-installed"]
    command += ["--report", "-", "--target", "unused", "--only-binary=:all:", "--implementation", "cp", "--python-version", python]
    command += [word for platform in platforms for word in ("--platform", platform)]
    command += ["--constraint", str(REPOSITORY / "constraints.txt")] if is_pinned else []
    command += ["--retries", "1", "--timeout", "15"]
    return subprocess.run([*command, *requirements], capture_output=True, text=True, timeout=240, check=False)


@pytest.mark.parametrize("target", TARGETS)
def test_every_dependency_of_the_agent_has_an_aarch64_wheel(target: str) -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    requirements = project["dependencies"] + project["optional-dependencies"]["agent"]
    python, glibc, is_pinned = TARGETS[target]
    done = resolve(requirements, python, glibc, is_pinned=is_pinned)
    if done.returncode and resolve(["msgspec"], "3.11", 36, is_pinned=False).returncode:
        pytest.skip("no package index answers")
    assert done.returncode == 0, done.stderr[-2000:]
    wheels = {item["metadata"]["name"]: item["download_info"]["url"].rpartition("/")[2] for item in json.loads(done.stdout)["install"]}
    assert {"numpy", "onnxruntime", "ai-edge-litert", "cryptography"} <= set(wheels)
    wrong = {name: wheel for name, wheel in wheels.items() if not wheel.endswith(("aarch64.whl", "none-any.whl"))}
    assert wrong == {}
