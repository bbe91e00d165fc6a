"""Room held back for the agent itself: given up when a start needs it, and only then."""

import os
from pathlib import Path

import pytest

from covey_agent import app
from covey_agent.adapters.reserve import FILE_BYTES, FILES, Reserve
from covey_agent.adapters.store_sqlite import Database, open_database
from covey_agent.errors import StoreError


def held(folder: Path) -> list[int]:
    return [path.stat().st_blocks * 512 for path in sorted(folder.iterdir())] if folder.exists() else []


def test_it_holds_real_blocks_and_inodes(tmp_path: Path) -> None:
    Reserve(tmp_path / "reserve").fill()
    assert len(held(tmp_path / "reserve")) == FILES
    assert min(held(tmp_path / "reserve")) >= FILE_BYTES


def test_what_a_start_needed_is_not_taken_back_in_the_same_start(tmp_path: Path) -> None:
    reserve = Reserve(tmp_path / "reserve")
    reserve.fill()
    assert reserve.give_up()
    reserve.fill()
    assert held(tmp_path / "reserve") == []
    assert not reserve.give_up(), "there is nothing more to give"
    Reserve(tmp_path / "reserve").fill()
    assert len(held(tmp_path / "reserve")) == FILES


def test_no_room_for_it_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    Reserve(tmp_path / "reserve").fill()
    assert held(tmp_path / "reserve") == []


def test_a_start_on_a_full_disk_gives_it_up_and_tries_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reserve = Reserve(tmp_path / "reserve")
    reserve.fill()

    def open_if_there_is_room(path: Path) -> Database:
        if held(tmp_path / "reserve"):
            raise StoreError("database or disk is full")
        return open_database(path)

    monkeypatch.setattr(app, "open_database", open_if_there_is_room)
    app._open_database(tmp_path / "state.db", reserve).close()


def test_without_it_the_start_ends_with_the_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Path) -> Database:
        raise StoreError("database or disk is full")

    monkeypatch.setattr(app, "open_database", refuse)
    with pytest.raises(StoreError, match="full"):
        app._open_database(tmp_path / "state.db", Reserve(tmp_path / "reserve"))
