"""What every capability's api.py shares: parts, sessions, pages, ETags.

    @router.get("/devices")
    def list_devices(_: Viewer, session: ReadSession, page: PageQuery) -> Page[DeviceView]:
        (after,) = page.after(1) or ("",)
        rows = service.list_devices(session, after=after, limit=page.limit + 1)
        return Page.cut([DeviceView.of(row) for row in rows], page, key=lambda view: (view.id,))

Endpoints are plain `def` functions, so that FastAPI runs them in threads and the database may wait.
"""

import base64
import binascii
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Generic, Self, TypeVar

from fastapi import Depends, HTTPException, Query, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from sqlmodel import Session

from covey_server.errors import InvalidInputError
from covey_server.parts import Parts

T = TypeVar("T")
MAX_PAGE = 200


class ApiInput(BaseModel):
    """Base of every request body: unknown fields are refused, so that a typing error never passes for a wish."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ApiView(BaseModel):
    """Base of every answer."""

    model_config = ConfigDict(frozen=True, from_attributes=True)


class Problem(BaseModel):
    """RFC 9457 problem details, the body of every error."""

    type: str = "about:blank"
    title: str = Field(description="the status in words")
    status: int
    detail: str = Field(description="what was expected, what came, what to do")


def problems(*statuses: int) -> dict[int | str, dict[str, object]]:
    """The `responses=` of an endpoint for OpenAPI: which errors it may answer."""
    return {status: {"model": Problem, "content": {"application/problem+json": {}}} for status in (401, 403, *statuses)}


def parts_of(request: Request) -> Parts:
    """The parts of the running server."""
    parts = request.app.state.parts
    assert isinstance(parts, Parts)  # noqa: S101 - set by app.py; anything else is a fault of ours
    return parts


def read_session(request: Request) -> Iterator[Session]:
    """A session that only reads."""
    with parts_of(request).db.read() as session:
        yield session


def write_session(request: Request) -> Iterator[Session]:
    """A session that commits when the endpoint returns, and rolls back when it raises."""
    with parts_of(request).db.begin() as session:
        yield session


PartsDep = Annotated[Parts, Depends(parts_of)]
ReadSession = Annotated[Session, Depends(read_session, scope="function")]
# scope="function": the commit must come before the answer is sent, or a caller could be told of what then failed.
WriteSession = Annotated[Session, Depends(write_session, scope="function")]


@dataclass(frozen=True, slots=True)
class PageRequest:
    """Which part of a list is wanted."""

    cursor: str | None
    limit: int

    def after(self, size: int) -> tuple[str, ...] | None:
        """The key behind which the page begins, None for the first. Raises InvalidInputError for a cursor that is not ours."""
        if self.cursor is None:
            return None
        try:
            key = json.loads(base64.urlsafe_b64decode(self.cursor.encode("ascii") + b"=" * (-len(self.cursor) % 4)))
        except (ValueError, UnicodeError, binascii.Error) as exc:
            raise InvalidInputError("the cursor is not one that this API gave") from exc
        if not isinstance(key, list) or len(key) != size or not all(isinstance(part, str) for part in key):
            raise InvalidInputError("the cursor is not one that this list gave")
        return tuple(key)

    def after_id(self, start: int) -> int:
        """Like `after` for lists whose key is one number; `start` stands for the first page."""
        number = self.before_id()
        return start if number is None else number

    def before_id(self) -> int | None:
        """The number behind which the page begins, in a list that is ordered by a falling number; None for the first page."""
        key = self.after(1)
        if key is None:
            return None
        if not (key[0].isascii() and key[0].isdecimal() and len(key[0]) <= 18):
            raise InvalidInputError("the cursor is not one that this list gave")
        return int(key[0])


def _page_request(
    cursor: Annotated[str | None, Query(description="`next` of the page before", max_length=500)] = None,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE, description="how many items at most")] = 50,
) -> PageRequest:
    return PageRequest(cursor, limit)


PageQuery = Annotated[PageRequest, Depends(_page_request)]


class Page(BaseModel, Generic[T]):
    """One page of a list."""

    items: list[T]
    next: str | None = Field(None, description="give it as `cursor` to get the next page; null at the end")

    @classmethod
    def cut(cls, found: Sequence[T], page: PageRequest, *, key: Callable[[T], tuple[object, ...]]) -> Self:
        """A page from `limit + 1` found items; `key` is what the list is ordered by."""
        items = list(found[: page.limit])
        if len(found) <= page.limit:
            return cls(items=items, next=None)
        text = json.dumps([str(part) for part in key(items[-1])])
        return cls(items=items, next=base64.urlsafe_b64encode(text.encode()).rstrip(b"=").decode())


def etag_of(view: BaseModel) -> str:
    """The strong ETag of one resource: a digest of what the API shows of it."""
    return f'"{hashlib.sha256(view.model_dump_json().encode()).hexdigest()[:32]}"'


def with_etag(request: Request, view: BaseModel) -> Response:
    """Answer one resource with its ETag, or 304 if the caller has it already (If-None-Match)."""
    etag = etag_of(view)
    known = request.headers.get("If-None-Match", "")
    if etag in [part.strip().removeprefix("W/") for part in known.split(",")]:
        return Response(status_code=304, headers={"ETag": etag})
    return JSONResponse(view.model_dump(mode="json"), headers={"ETag": etag})


def check_if_match(request: Request, view: BaseModel) -> None:
    """Refuse with 412 a change that was made against an older state than `view` (If-Match)."""
    wanted = request.headers.get("If-Match")
    if wanted is not None and wanted.strip() != "*" and etag_of(view) not in [part.strip() for part in wanted.split(",")]:
        raise HTTPException(412, "the resource has changed since you read it; read it again")
