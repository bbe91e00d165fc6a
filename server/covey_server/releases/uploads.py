"""Files that come with a form, on their way to the store, and the limit on what a request may carry."""

import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from fastapi import UploadFile
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from covey_server.api_errors import problem
from covey_server.errors import InvalidInputError

_Model = TypeVar("_Model", bound=BaseModel)


@contextmanager
def on_disk(uploads: Sequence[UploadFile], *, work_dir: Path) -> Iterator[list[Path]]:
    """The uploads as files in a folder that is gone afterwards."""
    scratch = work_dir / "uploads"
    scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        yield [_write(upload, Path(folder), number) for number, upload in enumerate(uploads)]


def parse_description(text: str, kind: type[_Model]) -> _Model:
    """The JSON part of a form. Raises InvalidInputError with the place of the fault."""
    try:
        return kind.model_validate_json(text)
    except ValidationError as exc:
        faults = "; ".join(f"{'.'.join(str(part) for part in fault['loc'])}: {fault['msg']}" for fault in exc.errors())
        raise InvalidInputError(f"the description is not valid: {faults}") from exc


def _write(upload: UploadFile, folder: Path, number: int) -> Path:
    # The name that came is for messages only: what is not plain is replaced, and a number keeps two uploads apart.
    name = re.sub(r"[^A-Za-z0-9._-]", "_", upload.filename or "")[-80:].lstrip(".")
    path = folder / str(number) / (name or "upload")
    path.parent.mkdir()
    with path.open("wb") as file:
        shutil.copyfileobj(upload.file, file)
    return path


class BodyLimit:
    """ASGI middleware: refuses a body over `max_bytes` with 413 before it fills the disk, whatever its length header says."""

    def __init__(self, app: ASGIApp, *, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, counting."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        if declared.isdigit() and int(declared) > self._max_bytes:
            await problem(413, self._words())(scope, receive, send)
            return
        read = 0

        async def counted() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self._max_bytes:
                raise HTTPException(413, self._words())  # inside the application, whose handler makes a problem document of it
            return message

        await self._app(scope, counted, send)

    def _words(self) -> str:
        return f"a request may carry {self._max_bytes} bytes (api.max_body_mb)"
