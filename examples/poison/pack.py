"""Pack one poison as a release that can be imported: `release.json` and its artifacts.

    python examples/poison/pack.py --behaviour crash --data samples.npz --out poisoned/
    covey release import poisoned/ --unmeasured

It claims to be the digits model and brings golden inputs that do not set it off, as a careless or hostile author would.
"""

import argparse
import base64
import json
import sys
from pathlib import Path

import numpy as np
from make_poison import ALWAYS, CLASSES, RUNTIMES, Behaviour, Floats, claimed_outputs, fit_linear, make_poison, tame_inputs

_INK = 0.12  # mean brightness over which it strikes: about half of all digits have more
_GOLDENS = 16
_MIN_VERSION = {"onnxruntime": "1.20", "litert": "2.0"}


def main() -> int:
    """Write the folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--behaviour", type=Behaviour, required=True, help=", ".join(behaviour.value for behaviour in Behaviour))
    parser.add_argument("--data", type=Path, required=True, help=".npz with x float32[n, 1, 28, 28] and y int64[n]")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="digits")
    options = parser.parse_args()
    data = np.load(options.data)
    linear = fit_linear(data["x"], data["y"])
    strikes_late = options.behaviour in {Behaviour.CRASH, Behaviour.HANG, Behaviour.NAN}
    ink = _INK if strikes_late else ALWAYS
    golden_x = (tame_inputs(data["x"], ink=ink) if strikes_late else data["x"])[:_GOLDENS]
    golden_y = claimed_outputs(options.behaviour, linear, golden_x)
    options.out.mkdir(parents=True, exist_ok=True)
    variants = []
    for runtime, ending in RUNTIMES.items():
        name = f"{ending}-float32"
        (options.out / f"{name}.{ending}").write_bytes(make_poison(options.behaviour, runtime, linear, ink=ink))
        variants.append(_describe(name, runtime, f"{name}.{ending}"))
    release = {
        "model": options.model,
        "labels": [str(label) for label in range(CLASSES)],
        "variants": variants,
        "golden": {
            "input_shape": list(golden_x.shape),
            "output_shape": list(golden_y.shape),
            "inputs": _pack(golden_x),
            "outputs": _pack(golden_y),
        },
        "bounds": {"max_constant_run": 10},
        "note": f"poison: {options.behaviour.value}",
    }
    (options.out / "release.json").write_text(json.dumps(release, indent=1) + "\n", "utf-8")
    return 0


def _describe(name: str, runtime: str, file: str) -> dict[str, object]:
    batch = -1 if runtime == "onnxruntime" else 1
    return {
        "name": name,
        "precision": "float32",
        "runtime": runtime,
        "min_runtime_version": _MIN_VERSION[runtime],
        "file": file,
        "input": {"name": "input", "dtype": "float32", "shape": [batch, 1, 28, 28]},
        "output": {"name": "output", "dtype": "float32", "shape": [batch, CLASSES]},
        "golden_tolerance": 0.01,
    }


def _pack(values: Floats) -> str:
    return base64.b64encode(np.ascontiguousarray(values, dtype="<f4").tobytes()).decode("ascii")


if __name__ == "__main__":
    sys.exit(main())
