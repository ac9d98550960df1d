"""Runs a command of this package inside another: the same parser, the same files, and only if it is not done."""

from __future__ import annotations

import argparse
import importlib
import json
from collections.abc import Sequence
from pathlib import Path

from accelerate import PartialState

from tcae_diffusers.data.distributed import gather_in_rank_order
from tcae_diffusers.data.images.content_fingerprint import content_fingerprint
from tcae_diffusers.data.images.folder import file_names
from tcae_diffusers.data.images.sources import build_image_source, scheme_of
from tcae_diffusers.files import sha256_of_file, write_json


def run_subcommand(name: str, arguments: Sequence[str]) -> int:
    """Parses `arguments` as the command line of `name` and runs it; errors are raised, not printed."""
    module = importlib.import_module(f"{__package__}.{name}")
    parser = argparse.ArgumentParser(prog=name)
    module.add_arguments(parser)
    return module.run(parser.parse_args([str(argument) for argument in arguments]))


def input_fingerprint(path: str | Path) -> str:
    """Changes with the content of a file, of the files below a folder, or of a data source; else the text itself."""
    root, scheme = Path(path), scheme_of(path)
    if scheme is not None:
        return build_image_source(path).fingerprint
    if not root.exists():
        return str(path)
    return sha256_of_file(root) if root.is_file() else content_fingerprint(root, file_names(root))


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
