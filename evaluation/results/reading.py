"""Reads results that commands have stored."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from tcae_diffusers.errors import InputError
from tcae_diffusers.files import file_names

from .kinds import RESULT_KINDS
from .result import Result

ResultType = TypeVar("ResultType", bound=Result)


def _read(content: Any, path: Path, kinds: Mapping[str, type[ResultType]]) -> ResultType | None:
    """The result that the content of a file is, or `None` if it is none of these kinds."""
    named = content.get("kind") if isinstance(content, dict) else None
    kind = kinds.get(named) if isinstance(named, str) else None
    try:
        return None if kind is None else kind.from_json(content, path)
    except InputError as error:
        raise InputError(f"cannot read {path}: {error}") from error


def read_result(path: str | Path, kind: type[ResultType]) -> ResultType:
    """Reads a result of one kind.

    Raises:
        InputError: If the file cannot be read or holds something else.
    """
    try:
        result = _read(json.loads(Path(path).read_text()), Path(path), {kind.kind: kind})
    except (OSError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {error}") from error
    if result is None:
        raise InputError(f"{path} is not a {kind.file_name()}, the result of '{kind.kind}'")
    return result


def collect_results(paths: Sequence[str | Path]) -> list[Result]:
    """Reads result files; folders are searched. They come in the order of [`RESULT_KINDS`].

    Raises:
        InputError: If a path does not exist, a file is no result, or nothing is found.
    """
    results = []
    for path in map(Path, paths):
        if not path.exists():
            raise InputError(f"result {path} does not exist; run the command that writes it first")
        for file in [path] if path.is_file() else _json_files(path):
            try:
                content = json.loads(file.read_text())
            except (json.JSONDecodeError, UnicodeDecodeError) as error:
                if path.is_dir():
                    continue  # a folder may hold JSON of others
                raise InputError(f"{file} is not a JSON result: {error}") from error
            result = _read(content, file, RESULT_KINDS)
            if result is not None:
                results.append(result)
            elif path.is_file():
                kinds = ", ".join(RESULT_KINDS)
                raise InputError(f"{file} is not a result of this package; expected one of the kinds {kinds}")
    if not results:
        searched = ", ".join(map(str, paths))
        raise InputError(f"no results below {searched}; expected reconstruction.json or similar files")
    order = list(RESULT_KINDS)
    return sorted(results, key=lambda result: order.index(result.kind))


def refuse_other_json(output: str | Path | None) -> None:
    """
    What a command does before it measures anything.

    Raises:
        InputError: The result would take the place of a JSON file that is none, such as the notes beside an archive of
            samples, which hold their classes.
    """
    path = Path(output or "")
    if path.suffix != ".json" or not path.is_file():
        return
    try:
        collect_results([path])
    except InputError as error:
        raise InputError(f"--output {path} would replace something else: {error}; choose another name") from error


def _json_files(folder: Path) -> list[Path]:
    return [folder / name for name in file_names(folder) if name.endswith(".json")]
