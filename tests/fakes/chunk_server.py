"""A ChunkSource in memory that answers like a server on a bad day."""

from collections.abc import Callable, Iterator

from covey_agent.workers.errors import NetworkError
from covey_contract.ids import Digest
from covey_contract.limits import CHUNK_BYTES, GROUP_CHUNKS
from covey_contract.messages import Chunk


class ChunkServer:
    """Answers each asking for a group through `relay`, which may drop, change, repeat or reorder chunks."""

    def __init__(self, data: bytes, *, relay: Callable[[list[Chunk]], list[Chunk]] = lambda chunks: chunks, askings: int = 50) -> None:
        self._data = data
        self._relay = relay
        self._askings = askings
        self.asked: list[tuple[int, int]] = []  # (group, mask) of each asking

    def chunks(self, digest: Digest, *, group: int, missing: Callable[[], int]) -> Iterator[Chunk]:
        """See ChunkSource."""
        for _ in range(self._askings):
            mask = missing()
            if not mask:
                return
            self.asked.append((group, mask))
            wanted = [group * GROUP_CHUNKS + bit for bit in range(GROUP_CHUNKS) if mask >> bit & 1]
            yield from self._relay([self.chunk(index) for index in wanted])
        raise NetworkError("no more patience")

    def chunk(self, index: int) -> Chunk:
        """The right chunk."""
        return Chunk(index=index, data=self._data[index * CHUNK_BYTES : (index + 1) * CHUNK_BYTES])
