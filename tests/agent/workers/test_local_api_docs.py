"""What docs/local-api.md shows works as it stands there: curl examples against a real worker, answers, errors, Python."""

import json
import re
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from tests.fakes.local_api import Place

pytestmark = pytest.mark.runtime

PAGE = (Path(__file__).parents[3] / "docs" / "local-api.md").read_text("utf-8")
IDENTITY = {"model": "tiny", "version": 1, "variant": "onnx-float32", "slot": "A"}


def blocks(language: str) -> list[str]:
    """Of the page, in its order."""
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "infer.token").write_text("t\n")
    with ExitStack() as stack:
        yield Place(tmp_path, stack, name="run/infer.sock")


def test_the_shell_examples_answer_what_the_page_says(place: Place) -> None:
    place.start(place.slot("A"))
    environment = {"PORT": str(place.tcp.getsockname()[1]), "PATH": "/usr/bin:/bin"}
    answers: list[dict[str, Any]] = []
    for block in blocks("sh"):
        command = ["bash", "-euo", "pipefail", "-c", block]
        done = subprocess.run(command, cwd=place.folder, env=environment, capture_output=True, text=True, timeout=30, check=False)
        assert done.returncode == 0, f"{block}{done.stderr}"
        answers.append(json.loads(done.stdout))
    batch, one, model, health, feedback, problem = answers
    assert (batch["label"], len(batch["confidence"]), len(batch["outputs"])) == (["no", "yes"], 2, 2)
    shown_answer, shown_problem = map(json.loads, blocks("json"))
    assert one | {"id": ""} == shown_answer | {"id": ""} | IDENTITY
    assert model.items() >= IDENTITY.items()
    assert model["input"] == {"shape": [-1, 2], "dtype": "float32"}
    assert (health["status"], health["requests"]) == ("serving", 2)
    assert feedback == {"labelled": 1, "correct": 1}
    assert problem == shown_problem


def test_the_python_examples_run(place: Place) -> None:
    place.start(place.slot("A"))
    said: list[tuple[Any, ...]] = []
    for block in blocks("python"):
        code = block.replace("/var/lib/covey-agent/run/infer.sock", str(place.path))
        names: dict[str, Any] = {"image": [0.25, 0.75], "batches": [[[0.9, 0.1]]] * 5, "client": place.client()}
        exec(compile(code, "docs/local-api.md", "exec"), names | {"print": lambda *words: said.append(words)})  # noqa: S102 - our own page
    assert said == [("yes", 0.75), *[(["no"],)] * 5]
