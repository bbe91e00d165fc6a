"""A device's view of a TUF repository: python-tuf's own client, fed by `read_file` as MQTT would feed it."""

from collections.abc import Iterator
from pathlib import Path

from tuf.api.exceptions import DownloadHTTPError
from tuf.ngclient import Updater
from tuf.ngclient.fetcher import FetcherInterface

from covey_server.parts import Repository


class RepositoryFetcher(FetcherInterface):
    """Fetches by `Repository.read_file`; what it lacks is 404."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository

    def _fetch(self, url: str) -> Iterator[bytes]:
        data = self._repository.read_file(url)
        if data is None:
            raise DownloadHTTPError(f"no {url}", 404)
        return iter([data])


class TufDevice:
    """Keeps its trusted metadata in a folder, as a device does between connections."""

    def __init__(self, folder: Path, repository: Repository) -> None:
        self._folder = folder
        self._repository = repository
        (folder / "targets").mkdir(parents=True, exist_ok=True)
        self._root = repository.newest_root()  # handed over at enrolment

    def fetch(self, path: str) -> bytes | None:
        """A target, fully verified; None if the repository does not list it."""
        updater = Updater(
            str(self._folder),
            "metadata",
            str(self._folder / "targets"),
            "targets",
            fetcher=RepositoryFetcher(self._repository),
            bootstrap=self._root,
        )
        updater.refresh()
        info = updater.get_targetinfo(path)
        if info is None:
            return None
        return Path(updater.download_target(info)).read_bytes()
