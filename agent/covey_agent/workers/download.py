"""Chunks by HTTPS: the other supplier. Same digests, same bitmap, same rules; only the bytes come another way.

    download = Download(offer.url, ca_file=..., settings=...)
    for chunk in download.chunks(digest, group=0, missing=store_says): ...

One kept-alive connection; each run of missing chunks of a group is one range request, so that resuming asks for exactly what is not
there. What comes is a claim: the caller checks every chunk against the signed manifest.
"""

import http.client
import logging
import re
import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

from covey_agent.workers.errors import NetworkError
from covey_contract.ids import Digest
from covey_contract.limits import CHUNK_BYTES, GROUP_CHUNKS
from covey_contract.messages import Chunk

logger = logging.getLogger(__name__)
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")
_READ_BYTES = 16 * 1024


@dataclass(frozen=True, slots=True)
class DownloadSettings:
    """All in seconds."""

    timeout_s: float = 20.0  # of one read from the network
    patience_s: float = 120.0  # without a chunk
    pause_s: float = 1.0  # after the first failure; doubled each time up to `most_pause_s`
    most_pause_s: float = 20.0


class Download:
    """A ChunkSource over one URL. Not for several threads."""

    def __init__(
        self,
        url: str,
        *,
        ca_file: str | None,
        settings: DownloadSettings | None = None,
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], None] = time.sleep,
        pace: Callable[[int], None] = lambda _: None,
    ) -> None:
        """`ca_file`: the only authority that is trusted; None: the public ones. `pace` is told each read's size and may wait.

        Raises NetworkError for a URL that is not https.
        """
        parts = urlsplit(url)
        if parts.scheme != "https" or not parts.hostname:
            raise NetworkError(f"a download needs an https address, got {url[:100]!r}")
        self._host, self._port = parts.hostname, parts.port or 443
        self._path = parts.path + (f"?{parts.query}" if parts.query else "")
        self._context = ssl.create_default_context(cafile=ca_file) if ca_file else ssl.create_default_context()
        self._settings = settings or DownloadSettings()
        self._clock, self._pause, self._pace = clock, pause, pace
        self._connection: http.client.HTTPSConnection | None = None

    def chunks(self, digest: Digest, *, group: int, missing: Callable[[], int]) -> Iterator[Chunk]:
        """See ChunkSource. The digest is in the URL already."""
        del digest
        progress_at, failures = self._clock(), 0
        while lacking := missing():
            try:
                for chunk in self._run(group, lacking):
                    yield chunk
                    if missing() != lacking:
                        lacking, progress_at, failures = missing(), self._clock(), 0
            except (OSError, http.client.HTTPException, _BadAnswerError) as exc:
                self.close()
                failures += 1
                if isinstance(exc, _BadAnswerError) and exc.final:
                    raise NetworkError(str(exc)) from exc
                if self._clock() - progress_at > self._settings.patience_s:
                    raise NetworkError(f"{self._host} brought nothing for {self._settings.patience_s:.0f} s: {exc}") from exc
                logger.info("the download is tried again: %s", exc or type(exc).__name__)
                self._pause(min(self._settings.pause_s * 2.0 ** min(failures - 1, 10), self._settings.most_pause_s))
            else:
                if missing() == lacking:  # everything that came was wrong
                    failures += 1
                    if failures > 3:
                        raise NetworkError(f"{self._host} sends bytes that are not what the signed manifest says")

    def close(self) -> None:
        """End the connection; the next chunk makes a new one."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _run(self, group: int, lacking: int) -> Iterator[Chunk]:
        """The first run of missing chunks."""
        first = (lacking & -lacking).bit_length() - 1
        count = 1
        while lacking >> (first + count) & 1:
            count += 1
        index = group * GROUP_CHUNKS + first
        start, end = index * CHUNK_BYTES, (index + count) * CHUNK_BYTES
        response = self._request(start, end)
        for number in range(count):
            data = self._read(response)
            if not data:
                return  # the artifact's end
            yield Chunk(index=index + number, data=data)
        response.read()  # so that the connection can be used again

    def _request(self, start: int, end: int) -> http.client.HTTPResponse:
        if self._connection is None:
            self._connection = http.client.HTTPSConnection(self._host, self._port, timeout=self._settings.timeout_s, context=self._context)
        self._connection.request("GET", self._path, headers={"Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"})
        response = self._connection.getresponse()
        if response.status != http.HTTPStatus.PARTIAL_CONTENT:
            final = response.status in {200, 401, 403, 404, 410, 416}  # 200: it knows no ranges, and would send everything each time
            raise _BadAnswerError(f"{self._host} answered {response.status} to a range request", final=final)
        found = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
        if found is None or int(found.group(1)) != start:
            raise _BadAnswerError(f"{self._host} sent another range than the one asked for", final=True)
        return response

    def _read(self, response: http.client.HTTPResponse) -> bytes:
        parts: list[bytes] = []
        left = CHUNK_BYTES
        while left:
            data = response.read(min(left, _READ_BYTES))
            if not data:
                break
            self._pace(len(data))
            parts.append(data)
            left -= len(data)
        return b"".join(parts)


class _BadAnswerError(Exception):
    """The server answered, and not what was asked for."""

    def __init__(self, message: str, *, final: bool) -> None:
        super().__init__(message)
        self.final = final
