"""One run of `covey demo`: each promise of its story, checked on what it left behind and not on what it says of itself."""

import hashlib
import json
import sqlite3
import subprocess
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from tests.end_to_end.demo_process import COVEY, Told

pytestmark = [pytest.mark.end_to_end, pytest.mark.slow, pytest.mark.timeout(900)]
DEVICES = ("device-1", "device-2")
CAREFUL = "partner-1"
PARTICIPANTS = (*DEVICES, CAREFUL)
DELTA = 1e-4
POISONS = ("crash", "constant", "wrong")


@pytest.fixture
def rows(told: Told) -> Iterator[sqlite3.Connection]:
    """The server's database after the end."""
    with closing(sqlite3.connect(f"file:{told.database}?mode=ro", uri=True)) as connection:
        connection.row_factory = sqlite3.Row
        yield connection


def test_every_step_holds(told: Told) -> None:
    assert told.code == 0, told.explanation
    assert told.report["ok"] is True
    assert told.report["failures"] == []


def test_nothing_runs_any_more_after_the_end(told: Told) -> None:
    assert told.left_over == []


def test_a_second_demo_in_the_same_folder_is_refused(told: Told) -> None:
    argv = [COVEY, "demo", "--exit", "--workdir", str(told.work_dir)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "holds a demo already" in " ".join(done.stdout.split())


def test_every_participant_is_enrolled_with_a_certificate_of_its_own(rows: sqlite3.Connection) -> None:
    enrolled = {row["id"]: row["profile"] for row in rows.execute("SELECT id, profile FROM devices WHERE state = 'ACTIVE'")}
    assert {name: profile.lower() for name, profile in enrolled.items()} == {
        **dict.fromkeys(DEVICES, "device"),
        CAREFUL: "partner",
    }
    serials = [row[0] for row in rows.execute("SELECT serial FROM certificates")]
    assert len(set(serials)) == len(PARTICIPANTS)


def test_no_participants_key_left_its_folder(told: Told) -> None:
    for name in PARTICIPANTS:
        key = (told.work_dir / "agents" / name / "identity" / "device.key").read_text("ascii")
        secret = key.splitlines()[2].encode("ascii")
        holders = [path for path in told.work_dir.rglob("*") if path.is_file() and secret in path.read_bytes()]
        assert [path.relative_to(told.work_dir / "agents").parts[0] for path in holders] == [name]


def test_the_private_model_has_learnt(told: Told) -> None:
    training = told.report["training"]
    assert training["accuracy"] >= 0.70  # after 2 rounds; guessing is right on 0.1
    assert training["accuracy_per_round"][0] < 0.4, "the untrained model knew something"
    references = {name: curve[-1] for name, curve in training["references"].items()}
    assert len(references) == 2
    assert min(references.values()) >= training["accuracy"], "privacy came for free: that cannot be"


def test_epsilon_is_what_an_independent_accountant_gets_from_the_ledger(told: Told, rows: sqlite3.Connection) -> None:
    from dp_accounting import dp_event
    from dp_accounting.pld import PLDAccountant
    from dp_accounting.rdp import RdpAccountant

    reported = told.report["training"]["epsilon"]
    assert set(reported) == set(PARTICIPANTS)
    for name, charges in standing_charges(rows).items():
        exact, loose = PLDAccountant(), RdpAccountant()
        for charge in charges:
            event = dp_event.PoissonSampledDpEvent(charge["sample_rate"], dp_event.GaussianDpEvent(charge["noise_multiplier"]))
            exact.compose(event, charge["steps"])
            loose.compose(event, charge["steps"])
        assert reported[name] == pytest.approx(exact.get_epsilon(DELTA), abs=0.01)
        assert reported[name] <= loose.get_epsilon(DELTA), "PLD says more than the looser bound"


def test_nobody_spends_more_than_epsilon_8(told: Told) -> None:
    assert all(0 < epsilon <= 8 for epsilon in told.report["training"]["epsilon"].values())
    assert told.report["training"]["delta"] == DELTA


def test_the_participants_own_account_never_says_less_than_the_servers(told: Told) -> None:
    training = told.report["training"]
    for name in PARTICIPANTS:
        (own,) = training["own_ledgers"][name]
        assert own["epsilon"] >= training["epsilon"][name], name
        assert own["epsilon"] <= own["budget"], name


def test_the_careful_partner_refuses_and_the_run_goes_on_without_it(told: Told, rows: sqlite3.Connection) -> None:
    run = told.report["training"]["run"]
    voids = [(row["device_id"], row["round"], row["reason"]) for row in rows.execute("SELECT * FROM privacy_events WHERE kind = 'VOID'")]
    assert [(device, number) for device, number, _ in voids] == [(CAREFUL, 2)]
    assert "over budget" in voids[0][2]
    rounds = {name: len(charges) for name, charges in standing_charges(rows).items()}
    assert rounds == {**dict.fromkeys(DEVICES, 2), CAREFUL: 1}
    assert rows.execute("SELECT state FROM runs WHERE id = ?", (run,)).fetchone()[0] == "COMPLETED"


def test_the_release_has_four_variants_and_int8_is_3_4_times_smaller(told: Told) -> None:
    variants = {variant["name"]: variant for variant in told.report["release"]["variants"]}
    assert set(variants) == {"onnx-float32", "onnx-int8", "tflite-float32", "tflite-int8"}
    assert all(variant["accepted"] for variant in variants.values())
    for form in ("onnx", "tflite"):
        small, whole = variants[f"{form}-int8"], variants[f"{form}-float32"]
        assert whole["length"] / small["length"] >= 3.4, form
        assert small["accuracy_drop"] <= 0.01, form


def test_every_artifact_is_stored_under_its_own_digest(told: Told) -> None:
    for variant in told.report["release"]["variants"]:
        digest = variant["artifact"]
        data = (told.work_dir / "server" / "blobs" / digest[:2] / digest[2:]).read_bytes()
        assert hashlib.sha256(data).hexdigest() == digest
        assert len(data) == variant["length"]


def test_the_rollout_is_complete_canary_first(told: Told) -> None:
    rollout = told.report["rollout"]
    assert rollout["state"] == "completed"
    parts = {part["device_id"]: part for part in rollout["devices"]}
    assert {name: (part["phase"], part["state"]) for name, part in parts.items()} == {
        "device-1": (0, "succeeded"),
        "device-2": (1, "succeeded"),
    }
    assert parts["device-2"]["sent_at"] >= parts["device-1"]["finished_at"], "the rest began before the canary was through"
    assert all(part["variant"] and part["variant_reason"] for part in parts.values())


def test_every_reading_is_stored_exactly_once(told: Told, rows: sqlite3.Connection) -> None:
    numbers = defaultdict(list)
    for row in rows.execute("SELECT device_id, epoch, sequence FROM readings"):
        numbers[row["device_id"], row["epoch"]].append(row["sequence"])
    assert {device for device, _ in numbers} == set(PARTICIPANTS)
    for stream, sequences in numbers.items():
        # No agent was restarted, so that its numbers have no gaps.
        assert sorted(sequences) == list(range(1, len(sequences) + 1)), stream
    counted = {name: sum(len(found) for (device, _), found in numbers.items() if device == name) for name in PARTICIPANTS}
    stored = {row[0]: row[1] for row in rows.execute("SELECT device_id, SUM(stored) FROM reading_streams GROUP BY device_id")}
    assert counted == stored
    for name, said in told.report["readings"].items():
        assert said["sent"] == said["received"] > 0
        assert said["lost"] == 0
        assert counted[name] >= said["received"], "readings that the API had counted are gone"


@pytest.mark.parametrize("device", DEVICES)
def test_what_applications_said_was_right_reaches_the_server_as_counts(told: Told, rows: sqlite3.Connection, device: str) -> None:
    query = """SELECT SUM(json_extract("values", '$.labelled')), SUM(json_extract("values", '$.labelled_correct'))
               FROM readings WHERE device_id = ? AND kind = 'infer'"""
    labelled, correct = rows.execute(query, (device,)).fetchone()
    answers = [answer for answer in _answers(told, device) if "error" not in answer]
    right = sum(answer["label"] == answer["truth"] for answer in answers)
    assert labelled > 0
    assert 0 < correct <= right  # the last counts may not have been sent at the end
    assert labelled - correct <= len(answers) - right


def test_what_a_device_did_offline_is_filed_at_its_own_time(told: Told, rows: sqlite3.Connection) -> None:
    outage = told.report["outage"]
    assert outage["asked"] > 0
    assert outage["failed"] == 0
    assert outage["backfilled"] > 0
    late = "SELECT COUNT(*) FROM readings WHERE device_id = ? AND julianday(received_at) - julianday(at) > 5.0 / 86400"
    assert rows.execute(late, (outage["device"],)).fetchone()[0] > 0, "nothing came later than it was made"


@pytest.mark.parametrize("behaviour", POISONS)
def test_a_poison_is_halted_at_the_canary_and_nobody_notices(told: Told, behaviour: str) -> None:
    outcome = told.report["poison"][behaviour]
    assert outcome["state"] == "halted"
    assert "canary" in outcome["reason"]
    parts = {part["device_id"]: part for part in outcome["devices"]}
    assert parts["device-1"]["state"] == "failed"
    assert parts["device-1"]["deployment_state"] == "rolled_back"
    assert parts["device-2"]["state"] == "skipped"
    assert outcome["requests"] > 0
    assert outcome["failed"] == 0
    assert all(0 <= took < 5000 for took in outcome["rollback_ms"])


def test_each_poison_is_in_quarantine_with_its_reason(told: Told) -> None:
    quarantine = {entry["digest"]: entry["reason"] for entry in told.report["poison"][POISONS[-1]]["quarantine"]}
    assert len(quarantine) == len(POISONS)
    reasons = " | ".join(quarantine.values())
    assert "SIGFPE" in reasons or "SIGSEGV" in reasons  # in ONNX Runtime or in LiteRT, whichever was faster here
    assert "golden" in reasons


def test_applications_got_answers_of_proven_models_only_from_the_second_device(told: Told) -> None:
    answers = _answers(told, "device-2")
    assert Counter(answer["version"] for answer in answers) == {1: len(answers)}


def test_the_agents_alone_can_tell_their_story_from_their_files(told: Told) -> None:
    agent = COVEY.removesuffix("covey") + "covey-agent"
    argv = [agent, "status", "--state-dir", str(told.work_dir / "agents" / "device-1"), "--json", "--require-running"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 7, "the agent still runs"
    assert '"rolled_back"' in done.stdout


def standing_charges(rows: sqlite3.Connection) -> dict[str, list[dict[str, Any]]]:
    """Charges per participant that no void takes back."""
    events = [dict(row) for row in rows.execute("SELECT * FROM privacy_events")]
    taken_back = {event["voids"] for event in events if event["kind"] == "VOID"}
    charges = defaultdict(list)
    for event in events:
        if event["kind"] == "CHARGE" and event["id"] not in taken_back:
            charges[event["device_id"]].append(event)
    return dict(charges)


def _answers(told: Told, device: str) -> list[dict[str, Any]]:
    lines = (told.work_dir / "answers" / f"{device}.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines if line.endswith("}")]
