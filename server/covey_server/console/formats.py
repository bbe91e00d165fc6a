"""How values are written on pages: times, sizes, shares. Pure; the templates use each as a filter of the same name."""

from datetime import UTC, datetime
from math import ceil, isfinite

_DASH = "\N{EN DASH}"
_MINUS = "\N{MINUS SIGN}"
_UNITS = ("B", "KB", "MB", "GB", "TB")


def ago(moment: datetime | None, *, now: datetime) -> str:
    """A relative time, as `3 min ago` or `in 2 h`; static/page.js keeps it current by the same rule."""
    if moment is None:
        return "never"
    seconds = (now - moment).total_seconds()
    text = _span(abs(seconds))
    if text == "0 s":
        return "just now"
    return f"{text} ago" if seconds >= 0 else f"in {text}"


def utc(moment: datetime | None) -> str:
    """The exact time, UTC."""
    return _DASH if moment is None else moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def iso(moment: datetime | None) -> str:
    """The exact time for machines."""
    return "" if moment is None else moment.astimezone(UTC).isoformat(timespec="milliseconds")


def duration(seconds: float | None) -> str:
    """A length of time in its two largest units."""
    if seconds is None or not isfinite(seconds):
        return _DASH
    if seconds < 60:
        return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.{1 if seconds < 10 else 0}f} s"
    for larger, smaller, length, part in (("d", "h", 86400, 3600), ("h", "min", 3600, 60), ("min", "s", 60, 1)):
        if seconds >= length:
            whole, rest = divmod(round(seconds / part), length // part)
            return f"{whole} {larger} {rest} {smaller}" if rest else f"{whole} {larger}"
    raise AssertionError("a minute is the least that comes here")


def size(count: float | None) -> str:
    """Bytes in units of 1024."""
    if count is None:
        return _DASH
    value = float(count)
    for unit in _UNITS:
        if abs(value) < 1024 or unit == _UNITS[-1]:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"
        value /= 1024
    raise AssertionError("the last unit always fits")


def percent(share: float | None, digits: int = 1) -> str:
    """A share of 0..1 as per cent."""
    if share is None:
        return _DASH
    return f"{share * 100:.{digits}f} %" if isfinite(share) else "∞"


def points(share: float | None) -> str:
    """A difference of shares in percentage points, signed."""
    if share is None:
        return _DASH
    value = round(share * 100, 1)
    sign = "+" if value > 0 else _MINUS if value < 0 else "±"
    return f"{sign}{abs(value):.1f} points"


def number(value: float | None, digits: int = 2) -> str:
    """A number with thousands apart; whole numbers without decimals."""
    if value is None:
        return _DASH
    if not isfinite(value):
        return "∞"
    if isinstance(value, int) or value == int(value):
        return f"{int(value):,}".replace(",", "\u202f")
    return f"{value:,.{digits}f}".replace(",", "\u202f")


def epsilon(value: float | None) -> str:
    """An epsilon, rounded up: a privacy loss is never told smaller than it is."""
    if value is None:
        return _DASH
    if not isfinite(value):
        return "∞"
    return f"{ceil(value * 100 - 1e-9) / 100:.2f}"


def delta(value: float) -> str:
    """A delta, as `1e-4` or `2.5e-6`."""
    mantissa, _, exponent = f"{value:.1e}".partition("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}" if value else "0"


def short(digest: str, length: int = 12) -> str:
    """The head of a digest."""
    return digest[:length] or _DASH


def words(name: str) -> str:
    """A state's or event's name for people: `rolled_back` -> `rolled back`."""
    return name.replace("_", " ")


def plural(count: int, one: str, many: str | None = None) -> str:
    """`1 device`, `2 devices`."""
    return f"{number(count)} {one if count == 1 else many or one + 's'}"


def _span(seconds: float) -> str:
    for length, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= length:
            return f"{int(seconds // length)} {unit}"
    return f"{int(seconds)} s" if seconds >= 5 else "0 s"
