"""Tables in Markdown, and pages of documentation that hold some."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tcae_diffusers.errors import InputError


def format_value(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def markdown_table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Rows by name as Markdown; a column that a row lacks is left empty there."""
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    lines = ["| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name, row in rows.items():
        cells = [format_value(row[column]) if column in row else "" for column in columns]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def with_table(page: Path, text: str, name: str, table: str) -> str:
    """
    The `text` of a page with `table` between its comments `table: name` and `end: name`.

    Raises:
        InputError: the page lacks them.
    """
    begin, end = f"<!-- table: {name} -->\n", f"<!-- end: {name} -->"
    if begin not in text or end not in text:
        raise InputError(f"{page} lacks {begin.strip()} or {end}, between which the table goes; put them back")
    before, _, rest = text.partition(begin)
    return f"{before}{begin}\n{table}\n\n{end}{rest.partition(end)[2]}"
