"""A new version of the agent, from files to an environment that is ready to be switched to. Nothing here changes what runs.

- One digest covers everything: of the one wheel, or of `SHA256SUMS`, which names every file of a folder. Files are copied into a place of
  our own and checked there, so that what was checked is what is installed.
- pip works offline and on these files only. What a version does not bring, it borrows from the first installation: a small upgrade is one
  wheel, and one with a new dependency brings that in the same folder.
- What lies about of an earlier attempt that was cut off is thrown away: a folder counts only once `versions.json` names it.
"""

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from covey_agent.errors import StateError, UsageError
from covey_agent.versions_file import VersionsFile

SUMS_NAME = "SHA256SUMS"
ORIGIN_NAME = "origin.sha256"  # in an environment: which bundle it was made from
TIMEOUT_S = 900.0
CHECK_TIMEOUT_S = 120.0
_WHEEL = re.compile(r"covey-([0-9][0-9A-Za-z.+!]*)-[^-]+-[^-]+-[^-]+\.whl")
_SUM = re.compile(r"([0-9a-f]{64}) [ *]([A-Za-z0-9][\w.+!-]*)")
_INCOMING = ".incoming"


@dataclass(frozen=True, slots=True)
class Bundle:
    """Checked files in a place of our own."""

    version: str
    wheel: Path
    folder: Path
    sha256: str  # what covers all of it


@contextmanager
def open_bundle(source: Path, sha256: str, folder: Path) -> Iterator[Bundle]:
    """Copy and check. Raises UsageError, StateError."""
    incoming = folder / _INCOMING
    _remove(incoming)
    try:
        incoming.mkdir(mode=0o700, parents=True)
        names = _read_sums(source, sha256) if source.is_dir() else {source.name: sha256}
        origin = source if source.is_dir() else source.parent
        for name, digest in names.items():
            _copy(origin / name, incoming / name, digest)
        wheels = [name for name in names if _WHEEL.fullmatch(name)]
        if len(wheels) != 1:
            raise UsageError(f"{source} must hold one wheel of covey, covey-VERSION-….whl, and holds {', '.join(wheels) or 'none'}")
        match = _WHEEL.fullmatch(wheels[0])
        yield Bundle(version=match.group(1) if match else "", wheel=incoming / wheels[0], folder=incoming, sha256=sha256)
    except OSError as exc:
        raise StateError(f"cannot copy {source}: {exc.strerror}") from exc
    finally:
        _remove(incoming)


def stage(bundle: Bundle, file: VersionsFile, state_dir: Path) -> None:
    """Make the environment of the bundle's version and see that it starts. Raises StateError; then it is gone again."""
    target = file.path(bundle.version)
    _remove(target)
    try:
        _run([sys.executable, "-m", "venv", "--without-pip", str(target)], "make an environment")
        _borrow(target, file.folder)
        _install(bundle, file.python(bundle.version))
        _check(bundle.version, file.python(bundle.version), state_dir)
        (target / ORIGIN_NAME).write_text(bundle.sha256, "ascii")
    except BaseException:
        _remove(target)
        raise
    os.sync()  # all of it is on the disk before anything names it


def is_staged(bundle: Bundle, file: VersionsFile) -> bool:
    """Whether the environment of the bundle's version is there and was made from this very bundle."""
    try:
        return (file.path(bundle.version) / ORIGIN_NAME).read_text("ascii") == bundle.sha256
    except (OSError, UnicodeDecodeError):
        return False


def prune(file: VersionsFile, *, keep: Sequence[str]) -> None:
    """Remove the environments that nothing names."""
    if file.folder.is_dir():
        for path in file.folder.iterdir():
            if path.is_dir() and path.name not in keep:
                _remove(path)


def _read_sums(source: Path, sha256: str) -> dict[str, str]:
    data = (source / SUMS_NAME).read_bytes()
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise UsageError(f"{source / SUMS_NAME} has the digest {found}, and {sha256} was expected")
    sums = {}
    for line in data.decode("utf-8", "replace").splitlines():
        match = _SUM.fullmatch(line)
        if match is None:
            raise UsageError(f"{source / SUMS_NAME}: expected `<sha256>  <file>`, got {line!r:.80}")
        sums[match.group(2)] = match.group(1)
    return sums


def _copy(source: Path, target: Path, digest: str) -> None:
    found = hashlib.sha256()
    with source.open("rb") as reader, target.open("xb") as writer:
        while block := reader.read(1 << 20):
            found.update(block)
            writer.write(block)
    if found.hexdigest() != digest:
        raise UsageError(f"{source} has the digest {found.hexdigest()}, and {digest} was expected")


def _borrow(target: Path, versions: Path) -> None:
    """Let the environment find the packages of the first installation, after its own; editable installations too."""
    lib = next((target / "lib").glob("python3*/site-packages"))
    places = [path for path in sys.path if path.endswith(("site-packages", "dist-packages")) and not path.startswith(f"{versions}/")]
    (lib / "zz_first_installation.pth").write_text("".join(f"import site; site.addsitedir({path!r})\n" for path in places))


def _install(bundle: Bundle, python: Path) -> None:
    extra = "train" if importlib.util.find_spec("opacus") else "agent"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "--isolated", "--disable-pip-version-check", "--no-input"]
    places = ["--no-index", "--no-cache-dir", "--only-binary", ":all:", "--find-links", str(bundle.folder)]
    _run([*pip, "install", "--quiet", *places, f"covey[{extra}] @ {bundle.wheel.as_uri()}"], "install it with pip")


def _check(version: str, python: Path, state_dir: Path) -> None:
    """The new version must name itself and read this device's settings before it may be switched to."""
    agent = [str(python), "-P", "-m", "covey_agent.cli"]
    said = _run([*agent, "--version"], "start it", timeout_s=CHECK_TIMEOUT_S).strip()
    if said != f"covey-agent {version}":
        raise StateError(f"the new version must call itself covey-agent {version}, and says {said!r}")
    _run([*agent, "config", "show", "--state-dir", str(state_dir)], "read this device's settings with it", timeout_s=CHECK_TIMEOUT_S)


def _run(command: Sequence[str], what: str, *, timeout_s: float = TIMEOUT_S) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "PYTHON"))}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False, env=environment)
    except subprocess.TimeoutExpired as exc:
        raise StateError(f"cannot {what}: it took longer than {timeout_s:g} s") from exc
    if done.returncode != 0:
        raise StateError(f"cannot {what}: {(done.stderr or done.stdout).strip()[-600:]}")
    return done.stdout


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
