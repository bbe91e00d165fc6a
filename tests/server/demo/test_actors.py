"""Programs that the demo runs to their end: what they print, how they fail, and that nobody has to wait for them."""

import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from covey_server.demo.actors import Troupe
from covey_server.errors import UnavailableError

pytestmark = pytest.mark.slow


def _python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_a_call_gives_what_was_printed(tmp_path: Path) -> None:
    assert Troupe(tmp_path).call("greeting", _python("print('hello')"), timeout_s=30) == "hello\n"


def test_a_failed_call_is_told_in_its_own_words(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match=r"greeting failed \(exit code 1\): no greeting today"):
        Troupe(tmp_path).call("greeting", _python("import sys; sys.exit('no greeting today')"), timeout_s=30)


def test_a_call_that_takes_too_long_is_ended_and_told(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="greeting did not end in 0 s"):
        Troupe(tmp_path).call("greeting", _python("import time; time.sleep(60)"), timeout_s=0.2)


def test_calls_in_other_threads_can_be_cut(tmp_path: Path) -> None:
    troupe = Troupe(tmp_path)
    started = tmp_path / "started"
    code = f"import time, pathlib; pathlib.Path({str(started)!r}).touch(); time.sleep(60)"
    with ThreadPoolExecutor(1) as pool:
        result = pool.submit(troupe.call, "greeting", _python(code), timeout_s=60)
        deadline = time.monotonic() + 20
        while not started.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        troupe.cut_calls()
        with pytest.raises(UnavailableError, match="killed by SIGKILL"):
            result.result(timeout=10)
