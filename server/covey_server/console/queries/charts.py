"""What static/charts.js draws: aligned columns, as uPlot wants them."""

from typing import Literal, TypedDict


class Series(TypedDict):
    """One line, or one layer of a stack."""

    label: str
    values: list[float | None]
    dashed: bool


class Chart(TypedDict):
    """One chart."""

    x: list[float]  # seconds since 1970, or plain numbers if not `time`
    time: bool
    kind: Literal["lines", "stack"]
    unit: str
    from_zero: bool  # whether the scale begins at zero, as amounts should
    series: list[Series]


def line(label: str, values: list[float | None], *, dashed: bool = False) -> Series:
    """One series."""
    return {"label": label, "values": values, "dashed": dashed}


def chart(
    x: list[float],
    series: list[Series],
    *,
    unit: str,
    time: bool = True,
    kind: Literal["lines", "stack"] = "lines",
    from_zero: bool = True,
) -> Chart:
    """One chart; a series that holds nothing is left out."""
    told = [one for one in series if any(value is not None for value in one["values"])]
    return {"x": x, "time": time, "kind": kind, "unit": unit, "from_zero": from_zero, "series": told}
