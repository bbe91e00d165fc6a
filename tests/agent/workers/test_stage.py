"""A slot is the old one, empty, or the whole new one at every instant; shown by dying at every file operation in turn."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from tests.fakes.tiny_releases import fill_slot, make_release, make_variant

from covey_agent.workers.errors import ModelError
from covey_agent.workers.slotmodel import read_slot
from covey_agent.workers.stage import SlotFile, holds, stage_slot
from covey_contract.codec import digest_of, encode
from covey_contract.release import Release

OPERATIONS = 18  # more than staging has; a test below says so if that changes
OLD, NEW = b"the old model", b"the new model"


class PowerCutError(BaseException):
    """The process ends here."""


def release(data: bytes, *, version: int) -> Release:
    return make_release([make_variant(data)], inputs=np.zeros((1, 2), np.float32), outputs=np.zeros((1, 2), np.float32), version=version)


def slot_file(made: Release) -> SlotFile:
    variant = made.variants[0]
    return SlotFile(made.model, made.version, digest_of(encode(made)), variant.name, variant.artifact)


def stage_new(slot_dir: Path, source: Path) -> None:
    made = release(NEW, version=2)
    stage_slot(slot_dir, encode(made), slot=slot_file(made), variant=made.variants[0], data=source)


def content(slot_dir: Path) -> bytes | None:
    """What a reader finds: a whole slot's model, or None; anything else fails."""
    return read_slot(slot_dir).model.read_bytes() if slot_dir.exists() else None


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "fetched"
    path.write_bytes(NEW)
    return path


@pytest.fixture
def slot_dir(tmp_path: Path) -> Path:
    return fill_slot(tmp_path / "slots" / "B", release(OLD, version=1), variant="onnx-float32", data=OLD)


def test_a_slot_is_replaced(slot_dir: Path, source: Path) -> None:
    stage_new(slot_dir, source)
    assert content(slot_dir) == NEW
    assert {path.name for path in slot_dir.parent.iterdir()} == {"B"}
    assert source.read_bytes() == NEW  # the agent may still want it if the slot is staged again


def count_operations(monkeypatch: pytest.MonkeyPatch, die_at: int) -> list[str]:
    """Let the process die before its n-th operation on the file system."""
    done: list[str] = []

    def counted(owner: object, name: str) -> None:
        real = getattr(owner, name)

        def operation(*args: object, **kwargs: object) -> object:
            if len(done) == die_at:
                raise PowerCutError(name)
            done.append(name)
            return real(*args, **kwargs)

        monkeypatch.setattr(owner, name, operation)

    for owner, name in (
        (Path, "rename"),
        (Path, "mkdir"),
        (Path, "write_bytes"),
        (Path, "hardlink_to"),
        (os, "fsync"),
        (shutil, "rmtree"),
    ):
        counted(owner, name)
    return done


@pytest.mark.parametrize("die_at", range(OPERATIONS))
def test_a_kill_at_any_operation_leaves_old_nothing_or_new_and_can_be_repeated(
    slot_dir: Path, source: Path, die_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        done = count_operations(patch, die_at)
        try:
            stage_new(slot_dir, source)
        except PowerCutError:
            pass
        else:
            assert len(done) <= die_at, "every operation was interrupted once"
    assert content(slot_dir) in (OLD, None, NEW)
    stage_new(slot_dir, source)
    assert content(slot_dir) == NEW
    assert {path.name for path in slot_dir.parent.iterdir()} == {"B"}


def test_the_kills_above_cover_every_operation(slot_dir: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = count_operations(monkeypatch, 10**9)
    stage_new(slot_dir, source)
    assert len(done) < OPERATIONS


def test_a_file_system_without_links_gets_a_copy(slot_dir: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("links are not supported")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    stage_new(slot_dir, source)
    assert content(slot_dir) == NEW


def test_a_slot_that_already_holds_the_release_is_recognised(slot_dir: Path) -> None:
    made = release(OLD, version=1)
    assert holds(slot_dir, slot_file(made), variant=made.variants[0])
    other = release(NEW, version=2)
    assert not holds(slot_dir, slot_file(other), variant=other.variants[0])


@pytest.mark.parametrize("name", ["model.onnx", "manifest.json", "slot.json"])
@pytest.mark.parametrize("damage", ["missing", "truncated", "changed"])
def test_a_damaged_slot_is_neither_held_nor_read(slot_dir: Path, name: str, damage: str) -> None:
    path = slot_dir / name
    data = path.read_bytes()
    path.unlink()
    if damage == "truncated":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "changed":
        path.write_bytes(data.replace(b"onnx-float32", b"onnx-float16").replace(b"old", b"bad"))
    made = release(OLD, version=1)
    assert not holds(slot_dir, slot_file(made), variant=made.variants[0])
    with pytest.raises(ModelError):
        read_slot(slot_dir)
