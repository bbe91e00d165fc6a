"""The console's own files (CSS, JavaScript, vendored libraries), each under an address that holds its content's hash.

A browser may therefore keep every file for ever, and a new version of the server never meets an old script.
The files are small and read once at start; nothing outside `static/` can be asked for, because only the table is served.
"""

import gzip
import hashlib
import mimetypes
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath

from starlette.requests import Request
from starlette.responses import Response

from covey_server.errors import NotFoundError

STATIC = Path(__file__).parent / "static"
PREFIX = "/static/"
_SERVED = frozenset({".css", ".js", ".svg"})


@dataclass(frozen=True, slots=True)
class Asset:
    """One file as it is served."""

    url: str
    media_type: str
    data: bytes
    zipped: bytes


@cache
def _by_name() -> dict[str, Asset]:
    return {str(path.relative_to(STATIC)): _load(path) for path in sorted(STATIC.rglob("*")) if path.suffix in _SERVED}


@cache
def _by_url() -> dict[str, Asset]:
    return {asset.url: asset for asset in _by_name().values()}


def asset_url(name: str) -> str:
    """The address of a file of `static/`; a name that does not exist is a bug in a template."""
    return _by_name()[name].url


def serve_asset(request: Request) -> Response:
    """Answer one request below /static/."""
    asset = _by_url().get(request.url.path)
    if asset is None:
        raise NotFoundError("file", request.url.path)
    headers = {"Cache-Control": "public, max-age=31536000, immutable", "X-Content-Type-Options": "nosniff", "Vary": "Accept-Encoding"}
    if "gzip" in request.headers.get("accept-encoding", ""):
        return Response(asset.zipped, media_type=asset.media_type, headers={**headers, "Content-Encoding": "gzip"})
    return Response(asset.data, media_type=asset.media_type, headers=headers)


def _load(path: Path) -> Asset:
    data = path.read_bytes()
    name = PurePosixPath(path.relative_to(STATIC).as_posix())
    digest = hashlib.sha256(data).hexdigest()[:12]
    media_type = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    return Asset(f"{PREFIX}{name.with_suffix('')}.{digest}{name.suffix}", media_type, data, gzip.compress(data, mtime=0))
