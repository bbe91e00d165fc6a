"""Entry point of `covey-quantize`: explains what to install when the pipeline's libraries are absent."""

import sys


def main() -> int:
    """Run the command and return its exit code."""
    try:
        from covey_quantize.command import run  # noqa: PLC0415  # only here can a missing library be told in plain words
    except ModuleNotFoundError as exc:
        sys.stderr.write(f"covey-quantize needs {exc.name}, which is not installed: pip install 'covey[quantize]'\n")
        return 4
    return run()


if __name__ == "__main__":
    sys.exit(main())
