"""Changes to `agent.toml` by commands: one key at a time, everything else in the file (comments too) stays as the owner wrote it.

`covey-agent policy ...` and `covey-agent data ...` use it. The result is parsed before it replaces the file.
"""

import json
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path

from covey_agent.adapters.slot_files import write_atomically
from covey_agent.errors import UsageError
from covey_agent.settings import FILE_NAME, parse_consent

Value = str | float | bool | list[str]


def set_value(state_dir: Path, table: str, key: str, value: Value, *, also: Mapping[str, Value] | None = None) -> None:
    """Set `key`, and the keys of `also`, in `[table]` of the settings file, creating what is missing.

    Raises UsageError if the result would be no valid file; then nothing has changed.
    """
    path = state_dir / FILE_NAME
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    changed = with_value(text, table, key, value)
    for other, content in (also or {}).items():
        changed = with_value(changed, table, other, content)
    parse_consent(tomllib.loads(changed))
    write_atomically(path, changed.encode("utf-8"), mode=0o600)


def with_value(text: str, table: str, key: str, value: Value) -> str:
    """`text` with one key set. Raises UsageError where an edit by line cannot be right, such as a list over several lines."""
    line = f"{key} = {_write(value)}"
    lines = text.splitlines()
    header = next((i for i, old in enumerate(lines) if re.fullmatch(rf"\s*\[\s*{re.escape(table)}\s*\]\s*(#.*)?", old)), None)
    if header is None:
        lines += ["", f"[{table}]", line] if lines else [f"[{table}]", line]
    else:
        end = next((i for i in range(header + 1, len(lines)) if lines[i].lstrip().startswith("[")), len(lines))
        known = next((i for i in range(header + 1, end) if re.match(rf"\s*{re.escape(key)}\s*=", lines[i])), None)
        if known is None:
            lines.insert(header + 1, line)
        else:
            lines[known] = line
    result = "\n".join(lines) + "\n"
    try:
        parsed: object = tomllib.loads(result)
    except tomllib.TOMLDecodeError as exc:
        raise UsageError(f"cannot set {table}.{key} in {FILE_NAME}: please write it by hand: {line} ({exc})") from exc
    for level in (*table.split("."), key):
        parsed = parsed.get(level) if isinstance(parsed, dict) else None
    if parsed != value:
        raise UsageError(f"cannot set {table}.{key} in {FILE_NAME}: please write it by hand: {line}")
    return result


def _write(value: Value) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return "[" + ", ".join(_write(item) for item in value) + "]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)  # TOML's basic strings take the same escapes
    return repr(float(value))
