"""
Runs a command inside a larger one, unless its result already exists.

A result is what was wanted if it was measured with the same arguments on the same content: it records both. Content is
what files hold, not what they are called or dated, and links are followed; the hashes are remembered by the state of
each file ([`content_fingerprint`]), so asking again is cheap. A Hub name stands for itself.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from accelerate import PartialState

from tcae_diffusers.data.distributed import gather_in_rank_order
from tcae_diffusers.data.images.content_fingerprint import content_fingerprint
from tcae_diffusers.data.images.decoding import DECODING_VERSION
from tcae_diffusers.data.images.image_sets import is_archive, open_data_source, open_image_set
from tcae_diffusers.files import file_names, sha256_of_file

from ..arguments.groups import Content, MeasuringArguments
from ..arguments.named_paths import parse_named_paths
from .reading import ResultType, read_result

ArgumentsType = TypeVar("ArgumentsType", bound=MeasuringArguments)


def folder_content(path: str | Path) -> str:
    """Of a saved model or pipeline: a hash of all its files but hidden ones; a Hub name stands for itself."""
    root = Path(path)
    if root.is_file():
        return sha256_of_file(root)
    if not root.is_dir():
        return str(path)
    return content_fingerprint(root, file_names(root))


def source_content(spec: str) -> str:
    """Of a data source."""
    return open_data_source(spec).fingerprint


def labels_content(labels: str) -> str:
    """Of the data whose class proportions are followed, if that is what `--labels` names."""
    return labels if labels == "balanced" else source_content(labels)


def reference_content(spec: str) -> str:
    """Of real images to compare with, or of an archive that may hold statistics of them."""
    return sha256_of_file(spec) if is_archive(spec) else open_image_set(spec).fingerprint


def sample_sets_content(samples: list[str]) -> str:
    """Of sets of generated images, which may be named."""
    return " ".join(open_image_set(path).fingerprint for path in parse_named_paths(samples).values())


def networks_content(networks: list[str]) -> list[str]:
    """Of the weights of feature networks that are given with any, as in `dinov2=weights/dinov2`."""
    return [folder_content(weights) for _, _, weights in (given.partition("=") for given in networks) if weights]


CONTENT: dict[Content, Callable[[Any], str | list[str]]] = {
    "folder": folder_content,
    "source": source_content,
    "labels": labels_content,
    "reference": reference_content,
    "sample sets": sample_sets_content,
    "networks": networks_content,
}


def inputs_of(arguments: MeasuringArguments) -> dict[str, Any]:
    """What decides a result, JSON-ready: every argument but `output`, and fingerprints of the content they name."""
    given = {entry.name: getattr(arguments, entry.name) for entry in fields(arguments) if entry.name != "output"}
    content = {
        name: CONTENT[kind](value)
        for name, kind in arguments.content.items()
        if (value := getattr(arguments, name)) not in (None, [])
    }
    # Fingerprints are of files: what pixels they give is a matter of how they are decoded.
    inputs = {"arguments": given, "content": content, "decoding": DECODING_VERSION}
    return json.loads(json.dumps(inputs, default=str))


def run_unless_done(
    run: Callable[[ArgumentsType], ResultType], arguments: ArgumentsType, kind: type[ResultType]
) -> ResultType:
    """
    The result of `run(arguments)`, read from `arguments.output` if it is there, else measured and stored there.

    Raises:
        InputError: As `run` does, or if data that the arguments name cannot be read.
    """
    state = PartialState()
    inputs = inputs_of(arguments)
    path = kind.path_in(arguments.output)
    stored = read_result(path, kind) if path.is_file() else None
    # All ranks do the same, whatever each of them sees of a shared file system.
    is_done = stored is not None and stored.inputs == inputs and stored.is_whole()
    if all(gather_in_rank_order(is_done, state)) and stored is not None:
        return stored
    result = run(arguments)
    result.inputs, result.path = inputs, path
    if state.is_main_process:
        result.save(arguments.output)
    state.wait_for_everyone()
    return result
