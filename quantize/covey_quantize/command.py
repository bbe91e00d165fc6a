"""The `covey-quantize` command: options to a request, progress and a table to the screen."""

import logging
import sys
import warnings
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from covey_quantize.child import end_cleanly_on_terminate
from covey_quantize.errors import QuantizeError, RequestError
from covey_quantize.pipeline import quantize_model
from covey_quantize.plan import KNOWN
from covey_quantize.report import REPORT_FILE, QuantizeReport, VariantReport, encode_report
from covey_quantize.request import Progress, QuantizeRequest

_NOT_WITHIN_BUDGET = 3
_INTERRUPTED = 130
_EXIT_CODES = """Exit codes: 0 done; 2 bad input (model, data, option, output directory); 3 done, but no reduced variant is within
the budget (accepted float ones are still written); 4 export, conversion or a needed library failed; 130 interrupted. On 2 and 4
the output directory is untouched."""

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(epilog=_EXIT_CODES)
def quantize(
    model: Annotated[
        str, typer.Argument(help="a .onnx file, a .pt2 file (torch.export.save), or path.py:function that builds a torch module")
    ],
    calibration: Annotated[str, typer.Option(help=".npz with x float32 (n, ...) and, for accuracy, y int64 (n)")],
    out: Annotated[str, typer.Option(help="directory for the variants and report.json; an earlier result is replaced")],
    weights: Annotated[str, typer.Option(help=".safetensors with the weights of path.py:function")] = "",
    held_out: Annotated[str, typer.Option(help=".npz to measure on; default: half of the calibration data")] = "",
    labels: Annotated[str, typer.Option(help="names of the classes, comma-separated, or @FILE with one a line")] = "",
    variants: Annotated[str, typer.Option(help=f"comma-separated, of {', '.join(KNOWN)}; default: what suits the model")] = "",
    max_accuracy_drop: Annotated[float, typer.Option(help="a variant that loses more accuracy is refused")] = 0.01,
    max_relative_error: Annotated[float, typer.Option(help="bound on ||variant - float|| / ||float|| of reduced variants")] = 0.15,
    goldens: Annotated[int, typer.Option(help="golden inputs to put into the report, at most 64")] = 16,
    seed: Annotated[int, typer.Option(help="which samples calibrate, measure and become golden")] = 0,
    tflite: Annotated[bool, typer.Option(help="make TFLite variants too (needs the extra tflite-export)")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="print the report as JSON instead of a table")] = False,
) -> None:
    """Export, quantize, measure and package one model for edge runtimes."""
    # A .pt2 or .py model runs its own code when it is loaded; an .onnx file is only parsed.
    screen = Console(stderr=True)
    try:
        request = msgspec.convert(
            {
                "model": model,
                "calibration": calibration,
                "out": out,
                "weights": weights,
                "held_out": held_out,
                "labels": _read_labels(labels),
                "variants": _listed(variants),
                "max_accuracy_drop": max_accuracy_drop,
                "max_relative_error": max_relative_error,
                "goldens": goldens,
                "seed": seed,
                "tflite": tflite,
            },
            QuantizeRequest,
        )
        report = quantize_model(request, progress=lambda step: _show_step(screen, step))
    except msgspec.ValidationError as exc:
        raise _failed(screen, RequestError(str(exc))) from exc
    except QuantizeError as exc:
        raise _failed(screen, exc) from exc
    if as_json:
        sys.stdout.write(encode_report(report).decode())
    else:
        _show_report(Console(), report, Path(out))
    if not report.is_within_budget():
        screen.print("[bold red]no reduced variant is within the budget[/]")
        raise typer.Exit(_NOT_WITHIN_BUDGET)


def run() -> int:
    """Run the command and return its exit code."""
    end_cleanly_on_terminate()
    warnings.simplefilter("ignore")  # exporters' notes to their own authors would drown ours
    logging.getLogger("covey_quantize").setLevel(logging.ERROR)
    try:
        app(prog_name="covey-quantize")
    except KeyboardInterrupt:
        return _INTERRUPTED
    except SystemExit as exc:  # how click ends, with its own code for wrong options: 2
        return exc.code if isinstance(exc.code, int) else int(exc.code is not None)
    return 0


def _failed(screen: Console, error: QuantizeError) -> typer.Exit:
    screen.print(f"[bold red]error[/] ({type(error).__name__}): {escape(str(error))}", soft_wrap=True)
    return typer.Exit(error.exit_code)


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _read_labels(text: str) -> list[str]:
    if not text.startswith("@"):
        return _listed(text)
    try:
        return [line.strip() for line in Path(text[1:]).read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as exc:
        raise RequestError(f"labels {text}: cannot be read: {exc}") from exc


def _show_step(screen: Console, step: Progress) -> None:
    screen.print(f"[bold cyan]{step.done + 1}/{step.total}[/] [bold]{step.step:<9}[/] {escape(step.detail)}", soft_wrap=True)


def _show_report(screen: Console, report: QuantizeReport, out: Path) -> None:
    screen.print(f"{report.kind.value}: {escape(report.kind_reason)}", soft_wrap=True)
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("variant", no_wrap=True)
    for name in ("bytes", "smaller", report.accuracy_is, "error", "ms", "MiB"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for variant in report.variants:
        table.add_row(*_cells(variant))
    screen.print(table)
    for variant in report.variants:
        if not variant.accepted:
            screen.print(f"[red]refused[/]  {variant.name}: {escape(variant.reason)}", soft_wrap=True)
    for missing in report.missing:
        screen.print(f"[yellow]not made[/] {missing.name}: {escape(missing.reason)}", soft_wrap=True)
    for note in report.notes:
        screen.print(f"note: {escape(note)}", soft_wrap=True)
    screen.print(f"wrote {len(report.accepted())} variants and {escape(str(out / REPORT_FILE))}", soft_wrap=True)


def _cells(variant: VariantReport) -> list[str]:
    return [
        variant.name,
        f"{variant.length:,}",
        f"{variant.size_ratio:.2f}x",
        _number(variant.accuracy, ".4f"),
        _number(variant.relative_error, ".2g"),
        _number(variant.latency_ms, ".3f"),
        f"{variant.memory / 2**20:.0f}",
        "[green]accepted[/]" if variant.accepted else "[red]refused[/]",
    ]


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
