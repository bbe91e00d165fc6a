"""Which supplier brings an artifact's chunks: the broker or HTTPS, and the other one when the first brings nothing.

The server says per artifact where it can be downloaded and which way it wants first (large artifacts: HTTPS). The chunks, their digests
and the bitmap are the same, so a change of supplier in mid-artifact costs nothing.
"""

import logging
from collections.abc import Callable, Iterator

from covey_agent.workers.download import Download
from covey_agent.workers.errors import NetworkError
from covey_agent.workers.link import ChunkSource, PartSource
from covey_contract.codec import decode
from covey_contract.errors import ContractError
from covey_contract.ids import Digest, parse_digest
from covey_contract.messages import Chunk, DownloadOffer
from covey_contract.offers import download_name

logger = logging.getLogger(__name__)
MakeDownload = Callable[[DownloadOffer], Download]


class Suppliers:
    """A ChunkSource made of two."""

    def __init__(self, broker: ChunkSource, fetch_part: PartSource, make_download: MakeDownload) -> None:
        self._broker = broker
        self._fetch_part = fetch_part
        self._make_download = make_download
        self._downloads: list[Download] = []
        self.used: set[str] = set()  # which ways brought something
        self._order: dict[str, list[tuple[str, ChunkSource]]] = {}  # by digest, the one that works first

    def chunks(self, digest: Digest, *, group: int, missing: Callable[[], int]) -> Iterator[Chunk]:
        """See ChunkSource. Raises NetworkError when neither brings what is missing."""
        order = self._suppliers(digest)
        for place, (name, supplier) in enumerate(order):
            try:
                yield from supplier.chunks(digest, group=group, missing=missing)
            except NetworkError as exc:
                if place + 1 == len(order):
                    raise
                logger.warning("%s brings nothing, so the rest comes by %s: %s", name, order[place + 1][0], exc)
            else:
                self.used.add(name)
                if place:
                    order.insert(0, order.pop(place))
                return

    def prefer(self, name: str, digest: str) -> None:
        """Take this way first for an artifact, whatever the server wants: `MQTT` or `HTTPS`, if there is such a way."""
        order = self._suppliers(parse_digest(digest))
        order.sort(key=lambda way: way[0] != name)

    def close(self) -> None:
        """End the connections that were made here."""
        for download in self._downloads:
            download.close()

    def _suppliers(self, digest: Digest) -> list[tuple[str, ChunkSource]]:
        if digest not in self._order:
            self._order[digest] = self._find(digest)
        return self._order[digest]

    def _find(self, digest: Digest) -> list[tuple[str, ChunkSource]]:
        broker = ("MQTT", self._broker)
        offer = self._ask(digest)
        if offer is None or not offer.url:
            return [broker]
        try:
            made = self._make_download(offer)
        except (NetworkError, OSError) as exc:
            logger.warning("the offer of a download was refused: %s", exc)
            return [broker]
        self._downloads.append(made)
        download = ("HTTPS", made)
        return [download, broker] if offer.first else [broker, download]

    def _ask(self, digest: Digest) -> DownloadOffer | None:
        answer = self._fetch_part(download_name(digest), 0)
        if answer.parts != 1:
            return None  # a server that knows no downloads
        try:
            return decode(answer.data, DownloadOffer)
        except ContractError as exc:
            logger.warning("the offer of a download was refused: %s", exc)
            return None
