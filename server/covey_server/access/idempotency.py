"""Idempotency keys: a POST that is sent again with the same `Idempotency-Key` is answered again instead of acting twice.

    @router.post("/runs", status_code=201)
    def create_run(body: NewRun, actor: Operator, session: WriteSession, once: Idempotent) -> Response:
        return once.answer(session, lambda: RunView.of(service.create_run(session, ...)), status=201)

The answer is stored in the same transaction as what was done, so either both exist or neither. Without the header the call
simply acts. A secret in an answer is not stored: `stored` makes the answer that a repetition gets.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Annotated, TypeVar

from fastapi import Depends, Header, Request, Response
from pydantic import BaseModel
from sqlalchemy.exc import IntegrityError
from sqlmodel import Session, col, delete

from covey_server.access.guard import authenticate
from covey_server.access.models import IdempotencyKey
from covey_server.access.rules import Actor
from covey_server.api_deps import parts_of
from covey_server.errors import ConflictError

_KEEP = timedelta(days=1)
View = TypeVar("View", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Once:
    """One POST and the key that it came with."""

    key: str | None
    actor: str
    route: str
    request_hash: str
    now: datetime

    def answer(
        self, session: Session, act: Callable[[], View], *, status: int = 201, stored: Callable[[View], View] = lambda view: view
    ) -> Response:
        """Act and answer, or answer as before. Raises ConflictError if the key was used for another request."""
        if self.key is None:
            return _json(act().model_dump_json().encode(), status)
        known = session.get(IdempotencyKey, (self.key, self.actor))
        if known is not None:
            if (known.route, known.request_hash) != (self.route, self.request_hash):
                raise ConflictError("this Idempotency-Key was used for another request; take a new one")
            return _json(known.body, known.status, repeated=True)
        row = IdempotencyKey(
            key=self.key, actor=self.actor, route=self.route, request_hash=self.request_hash, status=status, body=b"", created_at=self.now
        )
        session.add(row)
        try:
            session.flush()  # before acting: of two requests at once, one stops here
        except IntegrityError as exc:
            raise ConflictError("a request with this Idempotency-Key is being answered just now") from exc
        view = act()
        row.body = stored(view).model_dump_json().encode()
        session.add(row)
        return _json(view.model_dump_json().encode(), status)


async def _once(
    request: Request,
    actor: Annotated[Actor, Depends(authenticate)],
    key: Annotated[
        str | None, Header(alias="Idempotency-Key", min_length=1, max_length=128, description="repeat it to repeat the request safely")
    ] = None,
) -> Once:
    is_json = "json" in request.headers.get("content-type", "")
    body = await request.body() if key is not None and is_json else b""  # a form's stream was consumed when it was parsed
    return Once(key, actor.name, f"{request.method} {request.url.path}", hashlib.sha256(body).hexdigest(), parts_of(request).clock())


Idempotent = Annotated[Once, Depends(_once)]


def prune_idempotency_keys(session: Session, *, now: datetime) -> None:
    """Forget keys that nobody will repeat any more."""
    session.exec(delete(IdempotencyKey).where(col(IdempotencyKey.created_at) < now - _KEEP))


def _json(body: bytes, status: int, *, repeated: bool = False) -> Response:
    headers = {"Idempotency-Replayed": "true"} if repeated else None
    return Response(body, status_code=status, media_type="application/json", headers=headers)
