"""A real wheel of this tree's agent under another version, and wheels of agents that are no good; made by hand, without a build."""

import base64
import hashlib
import tomllib
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
# What stands at the top of `commands/run.py` of a bad version: everything else about it works, so that it gets as far as its first start.
CRASHES = "raise RuntimeError('this version is broken')"
HANGS = "import threading\nthreading.Event().wait()"
REFUSES = "raise SystemExit(2)"


def build_wheel(folder: Path, version: str, *, run: str = "", settings: str = "") -> Path:
    """`run` and `settings` are put at the end of these modules, before anything is called."""
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    info = f"covey-{version}.dist-info"
    files = {
        path.relative_to(root).as_posix(): path.read_text()
        for root in (ROOT / "agent", ROOT / "contract")
        for path in sorted(root.rglob("*.py"))
    }
    files["covey_agent/__init__.py"] = f'"""Another version."""\n\n__version__ = "{version}"\n'
    files["covey_agent/commands/run.py"] += f"\n\n{run}\n"
    files["covey_agent/settings.py"] += f"\n\n{settings}\n"
    needs = [f"Requires-Dist: {one}" for one in pyproject["project"]["dependencies"]]
    for extra in ("agent", "train"):
        needs += [f"Provides-Extra: {extra}"]
        needs += [f'Requires-Dist: {one}; extra == "{extra}"' for one in pyproject["project"]["optional-dependencies"][extra]]
    files[f"{info}/METADATA"] = "\n".join(["Metadata-Version: 2.1", "Name: covey", f"Version: {version}", *needs, ""])
    files[f"{info}/WHEEL"] = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    record = [f"{name},sha256={_hash(text)},{len(text.encode())}" for name, text in files.items()]
    files[f"{info}/RECORD"] = "\n".join([*record, f"{info}/RECORD,,", ""])
    target = folder / f"covey-{version}-py3-none-any.whl"
    with zipfile.ZipFile(target, "w") as wheel:
        for name, text in files.items():
            wheel.writestr(name, text)
    return target


def digest_of_file(path: Path) -> str:
    """Lower-case hexadecimal sha256."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _hash(text: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
