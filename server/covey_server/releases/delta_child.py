"""`python -m covey_server.releases.delta_child BASE TARGET OUT`: write the difference of two files as a BSDIFF40 patch.

A process of its own, because a suffix array of a large artifact takes up to 17 times its size in memory, and minutes.
"""

import sys
from pathlib import Path

import bsdiff4


def main() -> None:
    """Make one patch."""
    base, target, out = (Path(argument) for argument in sys.argv[1:4])
    out.write_bytes(bsdiff4.diff(base.read_bytes(), target.read_bytes()))


if __name__ == "__main__":
    main()
