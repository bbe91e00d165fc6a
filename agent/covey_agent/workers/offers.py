"""Ask the server whether there is a delta between what serves here and what is wanted."""

import logging
import time
from collections.abc import Callable

from covey_agent.workers.link import PartSource
from covey_contract.codec import decode
from covey_contract.errors import ContractError
from covey_contract.limits import chunk_count
from covey_contract.messages import DeltaOffer, DeltaState
from covey_contract.offers import delta_name

logger = logging.getLogger(__name__)
MAKING_PATIENCE_S = 60.0  # the first device of a wave waits this long for a delta that is being made
_PAUSE_S = 2.0
_WORTH_SHARE = 2  # a delta must be at most this part of the artifact


class DeltaOffers:
    """What `Fetch` asks before it fetches a whole artifact."""

    def __init__(
        self, fetch_part: PartSource, *, clock: Callable[[], float] = time.monotonic, pause: Callable[[float], None] = time.sleep
    ) -> None:
        self._fetch_part = fetch_part
        self._clock = clock
        self._pause = pause

    def find(self, base: str, target: str, *, length: int) -> DeltaOffer | None:
        """The offer, or None if there is none worth taking. Raises NetworkError. `length` is that of the target."""
        until = self._clock() + MAKING_PATIENCE_S
        while True:
            offer = self._ask(delta_name(base, target))
            if offer is None or offer.state is DeltaState.NONE:
                return None
            if offer.state is DeltaState.READY:
                return offer if _makes_sense(offer, length) else None
            if self._clock() >= until:
                logger.info("the delta is still being made; the whole artifact is fetched")
                return None
            self._pause(_PAUSE_S)

    def _ask(self, name: str) -> DeltaOffer | None:
        answer = self._fetch_part(name, 0)
        if answer.parts != 1:
            return None  # a server that knows no deltas, or an answer that is none
        try:
            return decode(answer.data, DeltaOffer)
        except ContractError as exc:
            logger.warning("the offer of a delta was refused: %s", exc)
            return None


def _makes_sense(offer: DeltaOffer, length: int) -> bool:
    return 0 < offer.length <= length // _WORTH_SHARE and len(offer.chunks) == chunk_count(offer.length)
