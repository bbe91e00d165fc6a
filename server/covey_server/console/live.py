"""Live events for open pages: one task per process reads new rows of `live_events`, every page's stream is fed from it.

Pages are told only that something changed (its name and ids) and fetch what they show again, so an event told twice is
harmless and one that a page need not know costs nothing. Nothing is missed: a page begins behind the event that was newest
before its data was read, and a broken connection goes on behind the last id it saw. A page that was away for too long is told
`reset` and fetches everything.
"""

import asyncio
import json
import logging
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Annotated, Any

import anyio
from fastapi import APIRouter, FastAPI, Header, Query, Request
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.concurrency import run_in_threadpool

from covey_server.api_deps import parts_of
from covey_server.console.page_route import PageRoute
from covey_server.console.viewer import LoggedIn
from covey_server.db import Database
from covey_server.outbox import LiveEvent, events_after, newest_event_id

logger = logging.getLogger(__name__)

_POLL_S = 0.5
_HEARTBEAT_S = 15  # under the idle timeouts of common proxies
_SEND_TIMEOUT_S = 20  # a reader that takes nothing for this long is gone
_KEPT = 1000  # events in memory; whoever is further behind is told to start over
_OVERLAP = 100  # PostgreSQL may show a lower id after a higher one: look back this far


@dataclass(frozen=True, slots=True)
class Told:
    """One event as pages hear it."""

    id: int
    name: str
    data: dict[str, Any]


RESET = "reset"


class LiveFeed:
    """The shared reader. It runs while somebody listens."""

    def __init__(self, db: Database, *, poll_s: float = _POLL_S) -> None:
        self._db = db
        self._poll_s = poll_s
        self._kept: deque[Told] = deque(maxlen=_KEPT)
        self._count = 0  # of events ever kept; a listener's place is a number of this count
        self._newest = 0
        self._seen: frozenset[int] = frozenset()  # ids within the overlap that were told already
        self._listeners = 0
        self._task: asyncio.Task[None] | None = None
        self._starting = asyncio.Lock()
        self._read = asyncio.Condition()
        self._closed = False

    async def listen(self, after: int | None, *, is_over: Callable[[], bool] = lambda: False) -> AsyncGenerator[Told, None]:
        """Every event with an id above `after` (None: from now on), until `is_over`, which is asked at every reading."""
        self._listeners += 1
        try:
            await self._start()
            place = self._count  # taken before the read: an event of the meantime is told twice rather than never
            for event in await self._catch_up(self._newest if after is None else after):
                yield event
            while not (self._closed or is_over()):
                async with self._read:
                    await self._read.wait()
                fresh, place = self._since(place), self._count  # before yielding: more may come while the caller is busy
                for event in fresh:
                    yield event
        finally:
            self._listeners -= 1
            if self._listeners == 0:
                self._stop()

    def close(self) -> None:
        """End every stream with the next reading. May be called from a signal handler."""
        self._closed = True

    async def _start(self) -> None:
        async with self._starting:
            if self._task is None:
                self._newest = await run_in_threadpool(self._read_newest)
                known = await run_in_threadpool(self._read_after, self._newest - _OVERLAP)
                self._seen = frozenset(row.id for row in known if row.id is not None and row.id <= self._newest)
                self._task = asyncio.create_task(self._poll(), name="console live events")

    def _stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            self._task = None

    async def _catch_up(self, after: int) -> list[Told]:
        rows = await run_in_threadpool(self._read_after, after)
        if len(rows) >= _KEPT:
            return [Told(self._newest, RESET, {})]
        return [_told(row) for row in rows]

    def _since(self, place: int) -> list[Told]:
        behind = self._count - place
        if behind > len(self._kept):
            return [Told(self._newest, RESET, {})]
        return list(self._kept)[len(self._kept) - behind :]

    async def _poll(self) -> None:
        while True:
            await asyncio.sleep(self._poll_s)
            try:
                rows = await run_in_threadpool(self._read_after, self._newest - _OVERLAP)
            except Exception:  # the loop's top: a database that is away for a moment must not end everybody's stream
                logger.exception("live events could not be read")
                rows = []
            async with self._read:
                self._keep([_told(row) for row in rows if row.id not in self._seen])
                self._read.notify_all()

    def _keep(self, fresh: list[Told]) -> None:
        if not fresh:
            return
        self._kept.extend(fresh)
        self._count += len(fresh)
        self._newest = max(self._newest, *(event.id for event in fresh))
        told = self._seen.union(event.id for event in fresh)
        self._seen = frozenset(number for number in told if number > self._newest - _OVERLAP)

    def _read_newest(self) -> int:
        with self._db.read() as session:
            return newest_event_id(session)

    def _read_after(self, after: int) -> list[LiveEvent]:
        with self._db.read() as session:
            return events_after(session, max(0, after), limit=_KEPT)


router = APIRouter(route_class=PageRoute, include_in_schema=False)


@router.get("/events")
async def stream_events(
    request: Request,
    _viewer: LoggedIn,
    after: Annotated[int | None, Query(ge=0)] = None,
    last_event_id: Annotated[str | None, Header()] = None,
) -> EventSourceResponse:
    """The stream of one page. `after` begins it; Last-Event-ID, which a browser sends when it comes back, wins over it."""
    if last_event_id is not None and last_event_id.isascii() and last_event_id.isdecimal():
        after = int(last_event_id[:18])
    ending = anyio.Event()
    return EventSourceResponse(
        _stream(feed_of(request), after, ending),
        ping=_HEARTBEAT_S,
        send_timeout=_SEND_TIMEOUT_S,
        shutdown_event=ending,
        shutdown_grace_period=3 * _POLL_S,
        sep="\n",
    )


def feed_of(request: Request) -> LiveFeed:
    """The process's feed, made when the first page asks."""
    state = request.app.state
    if not hasattr(state, "console_feed"):
        state.console_feed = LiveFeed(parts_of(request).db)
    feed: LiveFeed = state.console_feed
    return feed


def end_streams(app: FastAPI) -> None:
    """Let open pages go, so that the server can end at once; a server waits for its open answers, and a stream is one.

    Call it where SIGTERM is handled. It is not needed where uvicorn handles signals itself: sse-starlette notices those.
    """
    feed = getattr(app.state, "console_feed", None)
    if isinstance(feed, LiveFeed):
        feed.close()


async def _stream(feed: LiveFeed, after: int | None, ending: anyio.Event) -> AsyncIterator[ServerSentEvent]:
    yield ServerSentEvent(comment="covey", retry=2000, sep="\n")
    async with aclosing(feed.listen(after, is_over=ending.is_set)) as events:  # so that a broken stream leaves the feed at once
        async for event in events:
            # Without an SSE event name, so that one listener in the browser hears every name, also those it does not know yet.
            yield ServerSentEvent(data=json.dumps({"name": event.name, "data": event.data}), id=str(event.id), sep="\n")


def _told(row: LiveEvent) -> Told:
    return Told(row.id or 0, row.name, row.data)
