"""Runs a command of this package inside another: the same parser, the same files, and only if it is not done."""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
from collections.abc import Sequence
from pathlib import Path

from accelerate import PartialState

from tcae_diffusers.data.distributed import gather_in_rank_order
from tcae_diffusers.files import write_json


def run_subcommand(name: str, arguments: Sequence[str]) -> int:
    """Parses `arguments` as the command line of `name` and runs it; errors are raised, not printed."""
    module = importlib.import_module(f"{__package__}.{name}")
    parser = argparse.ArgumentParser(prog=name)
    module.add_arguments(parser)
    return module.run(parser.parse_args([str(argument) for argument in arguments]))


def input_fingerprint(path: str | Path) -> str:
    """Changes whenever a file below `path` does (names, sizes, times); a Hub name or data source stands for itself."""
    root = Path(path)
    if not root.exists():
        return str(path)
    files = [root] if root.is_file() else sorted(file for file in root.rglob("*") if file.is_file())
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.relative_to(root)} {file.stat().st_size} {file.stat().st_mtime_ns}\n".encode())
    return digest.hexdigest()


def run_unless_done(name: str, arguments: Sequence[str], output: Path, result: Path, inputs: Sequence[str]) -> bool:
    """Runs a command that writes to `output`, unless its result is there and stems from the same command and inputs.

    Args:
        arguments: Without `--output`.
        result: The file that the command writes last.
        inputs: Paths whose content the result depends on.

    Returns:
        Whether anything was done.
    """
    state = PartialState()
    key = {
        "command": [name, *map(str, arguments)],
        "inputs": {str(path): input_fingerprint(path) for path in inputs},
    }
    stamp = output.with_name(f"{output.name}.inputs.json")
    done = result.is_file() and stamp.is_file() and json.loads(stamp.read_text()) == key
    # All ranks do the same, whatever each of them sees of a shared file system.
    if all(gather_in_rank_order(done, state)):
        return False
    run_subcommand(name, [*arguments, "--output", str(output)])
    if state.is_main_process:
        write_json(stamp, key)
    state.wait_for_everyone()
    return True
