"""The child's end of the protocol, in memory and in real processes."""

import io
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import msgspec
import pytest

from covey_agent.core.jobs import CheckFailed, CheckJob, Drain, Pause
from covey_agent.workers.lines import EXIT_ABANDONED, EXIT_BAD_JOB, Lines


def test_a_job_is_the_first_line_and_orders_follow() -> None:
    lines = Lines(io.BytesIO(b'{"slot_dir":"x"}\n{"type":"pause"}\n{"type":"jump"}\nnonsense\n{"type":"drain"}\n'), io.BytesIO())
    assert lines.read_job(CheckJob) == CheckJob(slot_dir="x")
    assert list(lines.orders()) == [Pause(), Drain()]


@pytest.mark.parametrize("line", [b"", b"\n", b"{}\n", b'{"type":"probe_job","slot_dir":"x"}\n', b"\xff\xfe\n", b"[" * 100_000 + b"\n"])
def test_a_line_that_is_no_job_ends_the_child(line: bytes) -> None:
    with pytest.raises(SystemExit) as caught:
        Lines(io.BytesIO(line), io.BytesIO()).read_job(CheckJob)
    assert caught.value.code == EXIT_BAD_JOB


def test_an_event_is_one_line() -> None:
    outgoing = io.BytesIO()
    Lines(io.BytesIO(), outgoing).emit(CheckFailed(reason="two\nlines"))
    assert outgoing.getvalue().endswith(b"\n")
    assert msgspec.json.decode(outgoing.getvalue(), type=CheckFailed) == CheckFailed(reason="two\nlines")
    assert outgoing.getvalue().count(b"\n") == 1


def python(program: str) -> list[str]:
    head = "import os, sys, time\nfrom covey_agent.core.jobs import CheckFailed\nfrom covey_agent.workers.lines import Lines\n"
    return [sys.executable, "-c", head + textwrap.dedent(program)]


def test_what_libraries_print_never_reaches_the_agent() -> None:
    program = """
        lines = Lines.take_over()
        print("a chatty library")
        os.write(1, b"a chatty library in C\\n")
        lines.emit(CheckFailed(reason="said"))
        os.system("echo a grandchild")
    """
    done = subprocess.run(python(program), input=b"", capture_output=True, timeout=30, check=True)
    assert done.stdout == b'{"type":"check_failed","reason":"said"}\n'
    assert all(text in done.stderr for text in (b"a chatty library\n", b"library in C", b"a grandchild"))


def test_the_end_of_standard_input_ends_a_child_that_may_be_abandoned() -> None:
    with subprocess.Popen(
        python("Lines.take_over().abandon_at_end()\ntime.sleep(60)"), stdin=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as child:
        assert child.stdin
        child.stdin.close()
        assert child.wait(20) == EXIT_ABANDONED


def test_a_child_whose_agent_no_longer_reads_ends() -> None:
    program = """
        lines = Lines.take_over()
        while True:
            lines.emit(CheckFailed(reason="x" * 1000))
    """
    with subprocess.Popen(python(program), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as child:
        assert child.stdout
        child.stdout.close()
        assert child.wait(20) == EXIT_ABANDONED


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel of another system does not offer it")
def test_a_child_dies_with_its_parent() -> None:
    inner = "Lines.take_over().emit(CheckFailed(reason=str(os.getpid())))\\ntime.sleep(60)"
    head = "import os, time; from covey_agent.core.jobs import CheckFailed; from covey_agent.workers.lines import Lines"
    program = f"""
        import subprocess
        child = subprocess.Popen([sys.executable, "-c", "{head}\\n{inner}"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        print(child.stdout.readline().decode(), flush=True)
        time.sleep(60)
    """
    with subprocess.Popen(python(program), stdout=subprocess.PIPE) as parent:
        assert parent.stdout
        pid = int(msgspec.json.decode(parent.stdout.readline(), type=CheckFailed).reason)
        parent.kill()
    deadline = time.monotonic() + 10
    while _runs(pid):
        assert time.monotonic() < deadline, "the child outlived its parent"
        time.sleep(0.01)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
