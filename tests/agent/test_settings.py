"""Settings: defaults, file, environment, refusals; changes by commands."""

import re
from pathlib import Path

import pytest

from covey_agent.errors import UsageError
from covey_agent.settings import Settings, describe, load_consent, load_settings
from covey_agent.settings_file import set_value, with_value

DIGEST = "a" * 64


def write(folder: Path, text: str) -> Path:
    (folder / "agent.toml").write_text(text)
    return folder


def test_nothing_written_means_the_defaults(tmp_path: Path) -> None:
    assert load_settings(tmp_path, {}) == Settings()


def test_environment_wins_over_the_file(tmp_path: Path) -> None:
    write(tmp_path, "[readings]\ninfer_interval_s = 1\n[inference]\nthreads = 2\n")
    settings = load_settings(tmp_path, {"COVEY_AGENT_INFERENCE_THREADS": "3"})
    assert (settings.readings.infer_interval_s, settings.inference.threads) == (1.0, 3)


def test_broker_can_be_reached_another_way(tmp_path: Path) -> None:
    write(tmp_path, '[broker]\nhost = "gateway.local"\n')
    broker = load_settings(tmp_path, {"COVEY_AGENT_BROKER_PORT": "1883"}).broker
    assert (broker.host, broker.port) == ("gateway.local", 1883)
    assert load_settings(tmp_path, {"COVEY_AGENT_BROKER_HOST": "10.0.0.1"}).broker.host == "10.0.0.1"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[infernce]\nthreads = 1", "unknown table or key infernce"),
        ("[inference]\nthread = 1", "unknown key inference.thread"),
        ("[policy]\ntask = []", "unknown key policy.task"),
        ("[inference]\nthreads = 0", "inference.threads must be >= 1"),
        ("[inference]\nthreads = 1.5", "must be an integer"),
        ("[inference]\nthreads = true", "must be an integer"),
        ("[inference]\ntcp_port = 70000", "<= 65535"),
        ("inference = 3", "must be a dict"),
        ("[broker]\nhost = 3", "must be a str"),
        ("[readings", "cannot read"),
        ('[policy]\ntasks = ["short"]', "digest must match"),
        ('[policy]\nhours = ["late"]', "HH:MM-HH:MM"),
        ("[policy.budgets.digits]\nepsilon = 3.0", "must have epsilon and delta"),
        ("[policy.budgets.digits]\nepsilon = -1\ndelta = 0.1", "epsilon must be a number >= 0"),
        ("[policy.budgets.digits]\nepsilon = 1\ndelta = 1.0", "delta must be between 0 and 1"),
        ('[datasets]\n"a/b" = "/x"', "dataset must match"),
        ("[datasets]\ndigits = 3", "must be a str"),
    ],
)
def test_bad_settings_are_refused_with_the_key(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(UsageError, match=re.escape(words)):
        load_settings(write(tmp_path, text), {})


def test_bad_variable_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="COVEY_AGENT_INFERENCE_THREADS must be a number"):
        load_settings(tmp_path, {"COVEY_AGENT_INFERENCE_THREADS": "many"})


def test_policy_is_read(tmp_path: Path) -> None:
    text = f'[policy]\ntasks = ["{DIGEST}"]\nhours = ["22:00-06:00"]\n'
    text += '[policy.budgets.digits]\nepsilon = 3\ndelta = 1e-5\n[datasets]\nd = "/x"\n'
    consent = load_consent(write(tmp_path, text))
    assert consent.policy.tasks == (DIGEST,)
    assert consent.policy.budgets["digits"].epsilon == 3.0
    assert consent.datasets == {"d": "/x"}


def test_every_setting_is_described(tmp_path: Path) -> None:
    rows = describe(load_settings(tmp_path, {}), {"COVEY_AGENT_INFERENCE_THREADS": "1"})
    assert all(meaning for _, _, meaning, _ in rows)
    assert ("inference.threads", 1) in [(name, value) for name, value, _, _ in rows]
    assert any(variable == "COVEY_AGENT_INFERENCE_THREADS (set)" for _, _, _, variable in rows)


def test_changing_one_key_leaves_the_rest_and_the_comments_alone(tmp_path: Path) -> None:
    write(tmp_path, "# mine\n[inference]  # local\nthreads = 2 # two\n\n[policy]\nconsent = true\n")
    set_value(tmp_path, "policy", "tasks", [DIGEST])
    set_value(tmp_path, "policy.budgets.digits", "epsilon", 3.0, also={"delta": 1e-5})
    set_value(tmp_path, "datasets", "digits", '/data/with "quotes"')
    text = (tmp_path / "agent.toml").read_text()
    assert text.startswith("# mine\n[inference]  # local\nthreads = 2 # two\n")
    consent = load_consent(tmp_path)
    assert consent.policy.consent
    assert (consent.policy.tasks, consent.policy.budgets["digits"].delta) == ((DIGEST,), 1e-5)
    assert consent.datasets == {"digits": '/data/with "quotes"'}
    assert load_settings(tmp_path, {}).inference.threads == 2


def test_key_is_replaced_where_it_stands() -> None:
    assert with_value("[a]\nx = 1.0\ny = 2\n[b]\nx = 5\n", "a", "x", 3.0) == "[a]\nx = 3.0\ny = 2\n[b]\nx = 5\n"


@pytest.mark.parametrize("text", ["[policy]\ntasks = [\n  'a',\n]\n", "policy.tasks = []\n", "policy = { tasks = [] }\n"])
def test_what_cannot_be_edited_by_line_is_left_alone_and_said(text: str) -> None:
    with pytest.raises(UsageError, match="please write it by hand"):
        with_value(text, "policy", "tasks", ["b"])


def test_change_that_would_break_the_file_changes_nothing(tmp_path: Path) -> None:
    write(tmp_path, "[policy]\nconsent = true\n")
    with pytest.raises(UsageError):
        set_value(tmp_path, "policy", "tasks", ["no digest"])
    assert (tmp_path / "agent.toml").read_text() == "[policy]\nconsent = true\n"
