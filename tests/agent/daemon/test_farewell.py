"""Leaving the fleet for good: on a verified order only, by its owner's policy, and cut off anywhere it goes on. The ledger stays."""

from pathlib import Path

import pytest
from tests.fakes.agent.outside import DEVICE, World

from covey_agent.adapters import leaving
from covey_agent.adapters.leaving import Left, finish_leaving, note_leaving, refuse_decommissioned
from covey_agent.adapters.ledger_file import LEDGER_NAME, LedgerFile
from covey_agent.adapters.store_sqlite import SqliteState, open_database
from covey_agent.core.jobs import Rejected, Verified
from covey_agent.core.policy import LedgerEntry
from covey_agent.errors import DecommissionedError
from covey_agent.settings import IdentitySettings, Settings
from covey_contract.messages import Decommission, Outcome, PrivacyPlan

PLAN = PrivacyPlan(level="record", noise_multiplier=1.0, clipping_norm=1.0, sample_rate=0.1, steps=10, delta=1e-5)


def order(world: World, *, wipe: bool) -> Decommission:
    return Decommission(id="bye-1", device=DEVICE, expires_at=world.clock.now_ms() + 86_400_000, wipe=wipe)


@pytest.mark.parametrize("allowed", ["yes", "no"])
@pytest.mark.parametrize("asked", [True, False])
def test_the_device_answers_and_stops_and_its_owner_says_what_is_wiped(tmp_path: Path, asked: bool, allowed: str) -> None:
    world = World(tmp_path, settings=Settings(identity=IdentitySettings(allow_wipe=allowed)))
    life = world.boot()
    life.connect()
    life.order(order(world, wipe=asked))
    assert leaving.read_left(world.state_dir) is None  # nothing happens before the signature is verified
    life.speak("verify", Verified())
    replies = {reply.id: reply for reply in life.replies()}
    assert replies["bye-1"].outcome is Outcome.DONE
    wiped = asked and allowed == "yes"
    assert replies["bye-1"].values["wiped"] == ("keys, models, readings" if wiped else "nothing")
    assert bool(replies["bye-1"].reason) is (asked and not wiped)
    left = leaving.read_left(world.state_dir)
    assert left is not None
    assert left.wipe is wiped
    life.advance(5)
    assert life.agent._stopping


def test_an_order_that_is_not_the_fleets_changes_nothing(tmp_path: Path) -> None:
    world = World(tmp_path)
    life = world.boot()
    life.connect()
    life.order(order(world, wipe=True))
    life.speak("verify", Rejected(reason="the signature is wrong"))
    life.advance(10)
    assert not life.agent._stopping
    assert leaving.read_left(world.state_dir) is None


def fill(state_dir: Path) -> None:
    """What an agent has after a while, with a charge that only the database knows."""
    for name in ("identity/keys/1", "slots/A", "tuf", "fetch", "run", "training"):
        (state_dir / name).mkdir(parents=True)
        (state_dir / name / "file").write_text("secret")
    (state_dir / "agent.toml").write_text("# mine\n")
    (state_dir / "notes.txt").write_text("not ours")
    database = open_database(state_dir / "state.db")
    SqliteState(database, LedgerFile(state_dir / "elsewhere.jsonl")).append_charge(LedgerEntry("run-1", 1, "digits", PLAN, 1))
    database.close()
    (state_dir / "elsewhere.jsonl").unlink()


def test_everything_but_the_ledger_and_what_is_the_owners_goes(tmp_path: Path) -> None:
    fill(tmp_path)
    note_leaving(tmp_path, Left(DEVICE, "c", 1, wipe=True))
    with pytest.raises(DecommissionedError):
        refuse_decommissioned(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["agent.toml", "decommissioned.json", LEDGER_NAME, "notes.txt"]
    assert [(entry.run, entry.round) for entry in LedgerFile(tmp_path / LEDGER_NAME).entries()] == [("run-1", 1)]


def test_without_a_wipe_everything_stays_and_it_does_not_start(tmp_path: Path) -> None:
    fill(tmp_path)
    before = set(tmp_path.rglob("*"))
    note_leaving(tmp_path, Left(DEVICE, "c", 1, wipe=False))
    with pytest.raises(DecommissionedError):
        refuse_decommissioned(tmp_path)
    assert set(tmp_path.rglob("*")) == before | {tmp_path / "decommissioned.json"}


def test_a_wipe_that_is_cut_off_anywhere_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class PowerCutError(BaseException):
        pass

    steps, cut = 0, 0
    for name in ("unlink", "rmdir"):
        real = getattr(Path, name)

        def step(path: Path, *args: object, real: object = real, **more: object) -> object:
            nonlocal steps
            steps += 1
            if steps == cut:
                raise PowerCutError
            return real(path, *args, **more)  # type: ignore[operator]  # Path's own

        monkeypatch.setattr(Path, name, step)
    while cut == 0 or steps >= cut:
        at, cut = cut + 1, 0
        folder = tmp_path / str(at)
        folder.mkdir()
        fill(folder)
        note_leaving(folder, Left(DEVICE, "c", 1, wipe=True))
        steps, cut = 0, at
        try:
            finish_leaving(folder)
        except PowerCutError:
            finish_leaving(folder)
        assert sorted(path.name for path in folder.iterdir()) == ["agent.toml", "decommissioned.json", LEDGER_NAME, "notes.txt"]
        assert len(LedgerFile(folder / LEDGER_NAME).entries()) == 1
    assert cut > 15
