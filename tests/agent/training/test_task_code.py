"""A task bundle runs only if it is the one agreed to."""

import pytest

from covey_agent.workers.training.task_code import TaskCodeError, load_task
from covey_contract.codec import digest_of

GOOD = b"def build_model(): return 1\ndef load_data(path): return path, path\ndef compute_loss(model, x, y): return 0\n"


def test_the_agreed_code_is_loaded() -> None:
    task = load_task(GOOD, digest=digest_of(GOOD))
    assert (task.build_model(), task.load_data("p")) == (1, ("p", "p"))


def test_other_code_is_not_run() -> None:
    evil = GOOD + b"raise SystemExit('ran')\n"
    with pytest.raises(TaskCodeError, match="the invitation names"):
        load_task(evil, digest=digest_of(GOOD))


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (b"def build_model(): return 1\n", "defines no load_data, compute_loss"),
        (b"def (", "SyntaxError"),
        (b"import no_such_module_here\n", "ModuleNotFoundError"),
        (b"\x00\x01", "does not load"),
        (GOOD + b"load_data = 3\n", "defines no load_data"),
    ],
)
def test_what_is_no_task_is_refused_with_the_reason(code: bytes, reason: str) -> None:
    with pytest.raises(TaskCodeError, match=reason):
        load_task(code, digest=digest_of(code))
