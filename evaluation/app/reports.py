"""The reports and comparisons of a folder."""

from __future__ import annotations

import html
from pathlib import Path

from tcae_diffusers.errors import InputError
from tcae_diffusers.files import file_names

from ..report.page import build_report
from ..results.reading import collect_results

# Stands for a page that is made of all results in the folder.
ALL_RESULTS = "all results in one page"


def report_names(folder: Path) -> list[str]:
    """[`ALL_RESULTS`] and the HTML files in the folder, relative to it; links that lead out of it are left out."""
    return [
        ALL_RESULTS,
        *(name for name in file_names(folder) if name.endswith(".html") and _is_in(folder, folder / name)),
    ]


def read_report(folder: Path, name: str) -> str:
    """
    The HTML of one of [`report_names`].

    Raises:
        InputError: There is no such report, or no results to make one of.
    """
    if name == ALL_RESULTS:
        results = [found for found in collect_results([folder]) if found.path and _is_in(folder, found.path)]
        if not results:
            raise InputError("there are no results in this folder; measure something first")
        return build_report(results, title=f"Results in {folder.resolve().name}")
    if name not in report_names(folder):
        raise InputError(f"there is no report {name} in this folder; refresh the list and choose again")
    return (folder / name).read_text(encoding="utf-8")


def framed(document: str) -> str:
    """An HTML document as a frame of another one, which runs none of its scripts."""
    return (
        '<iframe class="report" title="Report" sandbox="allow-popups" '
        f'srcdoc="{html.escape(document, quote=True)}"></iframe>'
    )


def _is_in(folder: Path, path: Path) -> bool:
    return path.resolve().is_relative_to(folder.resolve())
