"""From files to the version that the next start tries: check, install beside the present one, and switch by one rename."""

from pathlib import Path

from covey_agent.errors import StateError
from covey_agent.service.staging import is_staged, open_bundle, prune, stage
from covey_agent.versions import Versions, begin_trial
from covey_agent.versions_file import VersionsFile


def switch_version(source: Path, sha256: str, state_dir: Path, *, again: bool, was_connected: bool) -> str:
    """Let the version in `source` be the current one, on trial; returns its name. Raises StateError, UsageError.

    Args:
        source: a wheel, or a folder with SHA256SUMS.
        sha256: of the wheel, or of SHA256SUMS.
        again: also a version that failed here before.
        was_connected: whether the present version is; then the new one must be able to.
    """
    file = VersionsFile(state_dir)
    try:
        with file.locked("upgrade.lock", wait=False), open_bundle(source, sha256, file.folder) as bundle:
            versions = file.load()
            _refuse(versions, bundle.version, again=again)
            prune(file, keep=[versions.current, versions.previous, bundle.folder.name])
            if bundle.version != versions.previous:
                stage(bundle, file, state_dir)
            elif not is_staged(bundle, file):  # what this version falls back to must stay as it is
                raise StateError(f"version {bundle.version} is here already, made from another file")
            file.change(lambda before: begin_trial(before, bundle.version, was_connected=was_connected))
            return bundle.version
    except BlockingIOError as exc:
        raise StateError("another upgrade is under way") from exc
    except OSError as exc:
        raise StateError(f"cannot write to {file.folder}: {exc.strerror}") from exc


def switch_back(state_dir: Path, *, was_connected: bool) -> str:
    """Let the version before be the current one, on trial; returns its name, "" for the first installation. Raises StateError."""
    file = VersionsFile(state_dir)
    versions = file.load()
    if versions.trial is not None:
        raise StateError(f"version {versions.current} is on trial: it is given up by itself if it is no good")
    if versions.previous == versions.current:
        raise StateError("there is no other version to go back to")
    try:
        return file.change(lambda before: begin_trial(before, before.previous, was_connected=was_connected)).current
    except OSError as exc:
        raise StateError(f"cannot write to {file.folder}: {exc.strerror}") from exc


def _refuse(versions: Versions, version: str, *, again: bool) -> None:
    if versions.trial is not None:
        raise StateError(f"version {versions.current} is on trial: wait until it is proven or given up")
    if version == versions.current:
        raise StateError(f"version {version} is current already")
    if version in versions.failed and not again:
        raise StateError(f"version {version} failed here before ({versions.failed[version]}); it is tried again only if that is asked for")
