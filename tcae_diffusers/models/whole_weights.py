"""Weights that are a model's, all of them and nothing else: what is left out or made up would spoil figures."""

from __future__ import annotations

import inspect
import os
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import diffusers
from diffusers import ConfigMixin, ModelMixin
from safetensors import SafetensorError

from ..errors import InputError

# What transformers adds to a network without using it for tokens.
_UNUSED = ("pooler.",)


class _ModelConfig(ConfigMixin):
    """Reads the config of any model. AutoModel looks for another file once it has loaded a part of a pipeline."""

    config_name = ModelMixin.config_name


def load_whole_model(folder: Path, **options: Any) -> ModelMixin:
    """
    [`load_whole`] of the class of diffusers, or of this package, that the config in `folder` names.

    Raises:
        InputError: There is no such class. Otherwise as [`load_whole`].
    """
    class_name = _ModelConfig.load_config(str(folder)).get("_class_name")
    model_class = getattr(diffusers, str(class_name), None)
    if not (inspect.isclass(model_class) and issubclass(model_class, ModelMixin)):
        raise InputError(f"{folder} holds a {class_name!r}, which is no model of diffusers {diffusers.__version__}")
    return load_whole(model_class, folder, **options)


def load_whole(model_class: Any, path: str | os.PathLike[str], unused: Sequence[str] = _UNUSED, **options: Any) -> Any:
    """
    `model_class.from_pretrained(path, **options)` of diffusers or transformers, which only logs what does not fit: it
    leaves out weights that the config has no place for, and draws or leaves undefined those that are not there.

    Args:
        unused: Beginnings of the names of weights that nobody will miss, and of those that the file may hold besides.

    Raises:
        InputError: The file is damaged, lacks weights of the model, or holds others or of other shapes.
        OSError, ValueError: As `from_pretrained` does.
    """
    place = os.path.join(os.fspath(path), options["subfolder"]) if options.get("subfolder") else path
    try:
        model, found = model_class.from_pretrained(os.fspath(path), output_loading_info=True, **options)
    except (RuntimeError, SafetensorError) as error:
        # torch names every tensor of another shape; the first few tell as much.
        reason = textwrap.shorten(str(error), 400, placeholder=" ...")
        raise InputError(f"the weights in {place} are not readable by {model_class.__name__}: {reason}") from error
    problems = []
    for kind, words in (("missing_keys", "lack {} of its tensors"), ("unexpected_keys", "hold {} others")):
        if names := sorted(name for name in found.get(kind, ()) if not name.startswith(tuple(unused))):
            problems.append(f"{words.format(len(names))}, such as {names[0]}")
    if problems:
        raise InputError(
            f"the weights in {place} are not those of the {type(model).__name__} that its config describes: they "
            f"{', and '.join(problems)}; save the model again with save_pretrained()"
        )
    return model
