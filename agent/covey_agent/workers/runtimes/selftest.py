"""Does a runtime really run here? Load a tiny model with it and compare the answer.

An import proves little: tflite-runtime with numpy 2 imports and fails at the first interpreter, and a library built for another
processor dies at its first kernel. The two files below are y = x @ [[1, 2], [3, 4]].T + [0.5, -0.5]; a test makes them anew.
"""

import base64
import tempfile
from pathlib import Path

import numpy as np

from covey_agent.workers.errors import ModelError
from covey_agent.workers.runtimes import load_model, runtime_version
from covey_contract.release import Needs, Runtime, TensorSpec, Variant

ONNX = base64.b64decode(
    "CAgSADqXAQoqCgVpbnB1dAoBdwoBYhIGb3V0cHV0IgRHZW1tKg0KBnRyYW5zQhgBoAECEgZsaW5lYXIqGwgCCAIQAUIBd0oQAACAPwAAAEAAAEBAAACAQCoR"
    "CAIQAUIBYkoIAAAAPwAAAL9aFwoFaW5wdXQSDgoMCAESCAoCCAEKAggCYhgKBm91dHB1dBIOCgwIARIICgIIAQoCCAJCBAoAEA0="
)
TFLITE = base64.b64decode(
    "CAAAAFRGTDOK////FAAAAFwAAABgAAAArAEAAAMAAAADAAAARAAAACQAAAAEAAAA6v///wQAAAAIAAAAAAAAPwAAAL8AAAYACAAEAAYAAAAEAAAAEAAAAAAA"
    "gD8AAABAAABAQAAAgECM////AAAAAAAAAAABAAAAFAAAAAAADgAYABQAEAAMAAgABAAOAAAAFAAAABwAAABkAAAAaAAAAGwAAAAEAAAAbWFpbgAAAAABAAAA"
    "FAAAAAAADgAUAAAAEAAMAAsABAAOAAAAFAAAAAAAAAgQAAAAFAAAAAQABAAEAAAAAQAAAAMAAAADAAAAAAAAAAEAAAACAAAAAQAAAAMAAAABAAAAAAAAAAQA"
    "AACQAAAAXAAAACwAAAAEAAAAjP///wgAAAAQAAAABgAAAG91dHB1dAAAAgAAAAEAAAACAAAA4P///wwAAAACAAAADAAAAAEAAABiAAAAAQAAAAIAAAAMABAA"
    "DAAAAAgABAAMAAAADAAAAAEAAAAMAAAAAQAAAHcAAAACAAAAAgAAAAIAAAAMAAwACAAAAAAABAAMAAAACAAAABAAAAAFAAAAaW5wdXQAAAACAAAAAQAAAAIA"
    "AAABAAAAEAAAAAwADAALAAAAAAAEAAwAAAAJAAAAAAAACQ=="
)

SAMPLE = np.array([[1, 2]], np.float32)


def run_selftest(runtime: Runtime, provider: str = "") -> str:
    """Return the runtime's version if it works here. Raises ModelError if it does not, unless it takes the process with it."""
    version = runtime_version(runtime)
    data = ONNX if runtime is Runtime.ONNXRUNTIME else TFLITE
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "selftest"
        path.write_bytes(data)
        answer = load_model(path, _variant(runtime, length=len(data)), threads=1, provider=provider).run(SAMPLE)
    if not np.allclose(answer, [[5.5, 10.5]]):
        raise ModelError(f"{runtime.value} {version} answers {answer.tolist()}, expected [[5.5, 10.5]]")
    return version


def _variant(runtime: Runtime, *, length: int) -> Variant:
    return Variant(
        name="selftest",
        precision="float32",
        needs=Needs(runtime=runtime, min_runtime_version="0"),
        artifact="",
        length=length,
        chunks=[],
        input=TensorSpec(name="input", dtype="float32", shape=[1, 2]),
        output=TensorSpec(name="output", dtype="float32", shape=[1, 2]),
        golden_tolerance=1e-5,
    )
