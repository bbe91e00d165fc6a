"""The child that converts to TFLite; see tflite.py. Started as `python -m covey_quantize.backends.tflite_child`."""

import sys

import msgspec

from covey_quantize.backends.tflite import TfliteDone, TfliteJob
from covey_quantize.child import claim_stdout, die_with_parent


def main() -> None:
    """Do the one job on standard input."""
    die_with_parent()
    answers = claim_stdout()
    job = msgspec.json.decode(sys.stdin.buffer.readline(), type=TfliteJob)
    # Only now: the import takes seconds and prints, and the lines above must hold before it.
    from covey_quantize.backends.tflite_convert import convert_all  # noqa: PLC0415

    answers.write(msgspec.json.encode(TfliteDone(convert_all(job))) + b"\n")
    answers.close()


if __name__ == "__main__":
    main()
