"""Downloads: the same artifacts by HTTPS, from the edge listener or from a host of the operator's.

    GET /edge/v1/artifacts/<digest>?until=<seconds>&sign=<hmac>     Range, ETag; only artifacts of published releases

A device is told where over MQTT, where it has shown its certificate; the address carries a signature that ends. What leaks with such
an address is one artifact for an hour. The key is the server's own and never leaves it.
"""

import hashlib
import hmac
import os
import re
import secrets
from pathlib import Path

from fastapi import APIRouter, Query, Request
from fastapi.responses import FileResponse, Response

from covey_contract.errors import ContractError
from covey_contract.ids import parse_digest
from covey_contract.limits import CHUNK_BYTES, GROUP_CHUNKS
from covey_contract.messages import DownloadOffer
from covey_contract.offers import parse_download_name
from covey_server.api_deps import parts_of
from covey_server.clock import Clock
from covey_server.db import Database
from covey_server.errors import NotFoundError, UnauthenticatedError
from covey_server.releases.files import write_atomic
from covey_server.releases.sendable import sendable_length
from covey_server.settings import Settings

NOWHERE = DownloadOffer()
KEY_FILE = ("keys", "downloads.key")
_KEY_BYTES = 32
MAX_RANGE_BYTES = 2 * GROUP_CHUNKS * CHUNK_BYTES  # read into memory at once
_SIMPLE_RANGE = re.compile(r"bytes=(\d{1,15})-(\d{1,15})")

router = APIRouter(prefix="/edge/v1", tags=["edge"])


class DownloadDesk:
    """Says where an artifact can be downloaded. Called by the delivery thread."""

    def __init__(self, db: Database, settings: Settings, clock: Clock) -> None:
        self._db = db
        self._settings = settings
        self._clock = clock
        self._key = load_key(settings)

    def offer(self, name: str) -> DownloadOffer:
        """The answer to a want of `downloads/<digest>`."""
        delivery = self._settings.delivery
        try:
            digest = parse_download_name(name)
        except ContractError:
            return NOWHERE
        with self._db.read() as session:
            length = sendable_length(session, digest)
        if length is None or not (delivery.https or delivery.download_url):
            return NOWHERE
        first = length >= delivery.https_first_mb * 1e6
        if delivery.download_url:
            return DownloadOffer(url=f"{delivery.download_url.rstrip('/')}/{digest}", first=first, fleet_ca=False)
        until = int(self._clock().timestamp()) + int(delivery.download_minutes * 60)
        query = f"until={until}&sign={sign(self._key, digest, until)}"
        return DownloadOffer(url=f"{self._settings.edge_url}/edge/v1/artifacts/{digest}?{query}", first=first)


@router.get("/artifacts/{digest}", response_class=Response, summary="An artifact, whole or in ranges")
def artifact(request: Request, digest: str, until: int = Query(ge=0, le=2**40), sign: str = Query(max_length=64)) -> Response:
    """Chunks as devices get them over MQTT, for those that were sent here."""
    parts = parts_of(request)
    try:
        known = parse_digest(digest)
    except ContractError:
        raise NotFoundError("artifact", digest[:80]) from None
    if not is_signed(load_key(parts.settings), known, until, sign) or parts.clock().timestamp() > until:
        raise UnauthenticatedError("this address has expired or was never given out; ask for another one over MQTT")
    with parts.db.read() as session:
        length = sendable_length(session, known)
    if length is None:
        raise NotFoundError("artifact", known)
    headers = {"ETag": f'"{known}"', "Accept-Ranges": "bytes", "Cache-Control": "private, immutable"}
    wanted = _SIMPLE_RANGE.fullmatch(request.headers.get("range", ""))
    if wanted is None or int(wanted.group(2)) - int(wanted.group(1)) >= MAX_RANGE_BYTES:
        # Rare: a person, or a range that no device of ours asks for. Slower, and complete.
        return FileResponse(parts.blobs.path(known), media_type="application/octet-stream", headers=headers)
    start, end = int(wanted.group(1)), min(int(wanted.group(2)) + 1, length)
    if start >= end:
        return Response(status_code=416, headers=headers | {"Content-Range": f"bytes */{length}"})
    body = parts.blobs.read_range(known, start, end - start)
    headers["Content-Range"] = f"bytes {start}-{end - 1}/{length}"
    return Response(body, 206, headers, media_type="application/octet-stream")


def sign(key: bytes, digest: str, until: int) -> str:
    """The signature of an address, hex."""
    return hmac.new(key, f"{digest}/{until}".encode("ascii"), hashlib.sha256).hexdigest()


def is_signed(key: bytes, digest: str, until: int, signature: str) -> bool:
    """Whether this server gave the address out."""
    return hmac.compare_digest(sign(key, digest, until).encode("ascii"), signature.encode("utf-8", "replace"))


def load_key(settings: Settings) -> bytes:
    """The key of addresses; made when it is first needed, by whichever program needs it first."""
    path = settings.path(*KEY_FILE)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        draft = path.with_name(f".{path.name}.{os.getpid()}")
        write_atomic(draft, secrets.token_bytes(_KEY_BYTES))
        draft.chmod(0o600)
        _link_once(draft, path)
    return path.read_bytes()


def _link_once(draft: Path, path: Path) -> None:
    """The first one wins, so that two programs that begin together agree."""
    try:
        path.hardlink_to(draft)
    except FileExistsError:
        pass
    finally:
        draft.unlink()
