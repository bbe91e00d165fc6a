"""Live events: none is missed, whatever happens to the connection or the database."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing
from pathlib import Path

import pytest
from sqlalchemy.exc import OperationalError
from sqlmodel import Session
from tests.fakes.console_app import open_database

from covey_server.console.live import RESET, LiveFeed, Told
from covey_server.db import Database
from covey_server.outbox import LiveEvent, emit


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Database]:
    db = open_database(tmp_path)
    yield db
    db.close()


def tell(db: Database, *names: str) -> None:
    with db.begin() as session:
        for name in names:
            emit(session, name, {"id": name})


async def take(events: AsyncIterator[Told], count: int) -> list[str]:
    return [(await asyncio.wait_for(anext(events), 5)).name for _ in range(count)]


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def whole() -> None:
        await test()

    asyncio.run(whole())


def test_a_page_hears_what_comes_after_it_was_made(db: Database) -> None:
    tell(db, "old.one", "missed.one")

    async def test() -> None:
        async with aclosing(LiveFeed(db, poll_s=0.005).listen(1)) as events:
            assert await take(events, 1) == ["missed.one"]
            tell(db, "new.one")
            assert await take(events, 1) == ["new.one"]

    run(test)


def test_without_a_place_only_the_future_is_told(db: Database) -> None:
    tell(db, "old.one")

    async def test() -> None:
        async with aclosing(LiveFeed(db, poll_s=0.005).listen(None)) as events:
            waiting = asyncio.ensure_future(take(events, 1))
            await asyncio.sleep(0.02)
            tell(db, "new.one")
            assert await waiting == ["new.one"]

    run(test)


def test_events_that_come_while_a_page_is_busy_are_told_later(db: Database) -> None:
    async def test() -> None:
        feed = LiveFeed(db, poll_s=0.005)
        async with aclosing(feed.listen(0)) as slow, aclosing(feed.listen(0)) as quick:
            tell(db, "a.a")
            assert await take(slow, 1) == ["a.a"]
            assert await take(quick, 1) == ["a.a"]
            tell(db, "b.b")
            assert await take(quick, 1) == ["b.b"]
            tell(db, "c.c")
            assert await take(quick, 1) == ["c.c"]
            assert await take(slow, 2) == ["b.b", "c.c"]

    run(test)


def test_a_row_that_appears_below_the_newest_is_told_too(db: Database) -> None:
    tell(db, *["old.one"] * 5)

    def insert(session: Session, ident: int, name: str) -> None:
        session.add(LiveEvent(id=ident, name=name, data={}))

    async def test() -> None:
        async with aclosing(LiveFeed(db, poll_s=0.005).listen(5)) as events:
            with db.begin() as session:
                insert(session, 8, "later.id")
            assert await take(events, 1) == ["later.id"]
            with db.begin() as session:  # as PostgreSQL shows it when the transaction with the lower id commits last
                insert(session, 7, "lower.id")
            assert await take(events, 1) == ["lower.id"]
            tell(db, "next.one")
            assert await take(events, 1) == ["next.one"]

    run(test)


def test_a_page_that_is_too_far_behind_starts_over(db: Database) -> None:
    tell(db, *["x.x"] * 1001)

    async def test() -> None:
        async with aclosing(LiveFeed(db, poll_s=0.005).listen(0)) as events:
            assert await take(events, 1) == [RESET]

    run(test)


def test_a_database_that_is_away_for_a_moment_ends_no_stream(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        feed = LiveFeed(db, poll_s=0.005)
        async with aclosing(feed.listen(0)) as events:
            tell(db, "a.a")
            assert await take(events, 1) == ["a.a"]
            with monkeypatch.context() as patch:
                patch.setattr(db, "read", _raise)
                await asyncio.sleep(0.03)
            tell(db, "b.b")
            assert await take(events, 1) == ["b.b"]

    run(test)


def test_closing_ends_every_stream(db: Database) -> None:
    async def test() -> None:
        feed = LiveFeed(db, poll_s=0.005)
        events = feed.listen(0)
        ending = asyncio.ensure_future(anext(events, None))
        await asyncio.sleep(0.02)
        feed.close()
        assert await asyncio.wait_for(ending, 5) is None

    run(test)


def test_nothing_polls_when_nobody_listens(db: Database) -> None:
    async def test() -> None:
        feed = LiveFeed(db, poll_s=0.005)
        tell(db, "a.a")
        async with aclosing(feed.listen(0)) as events:
            await take(events, 1)
            assert any(task.get_name() == "console live events" for task in asyncio.all_tasks())
        await asyncio.sleep(0)
        assert not any(task.get_name() == "console live events" for task in asyncio.all_tasks())

    run(test)


def _raise() -> None:
    raise OperationalError("select", {}, Exception("the database is away"))
