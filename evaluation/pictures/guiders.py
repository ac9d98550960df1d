"""Guiders that a pipeline draws with: its own, or one that the command line names."""

from __future__ import annotations

import inspect
import json
from typing import Any

from diffusers import DiffusionPipeline, guiders
from diffusers.guiders import BaseGuidance

from tcae_diffusers.errors import InputError
from tcae_diffusers.pipelines import TCDiTPipeline
from tcae_diffusers.pipelines.guidance import without_notice

from ..arguments.sampling import GuidanceArguments


def guider_of(pipeline: DiffusionPipeline) -> BaseGuidance | None:
    """The guider of a pipeline; `None` for one that has none, or knows no guiders."""
    return getattr(pipeline, "guider", None)


def recorded_guider(guider: BaseGuidance) -> dict[str, Any]:
    """Class and options of a guider, as JSON holds them."""
    return {
        key: value
        for key, value in json.loads(guider.to_json_string()).items()
        if key == "_class_name" or not key.startswith("_")
    }


def set_guider(pipeline: DiffusionPipeline, arguments: GuidanceArguments) -> None:
    """
    Let `pipeline` draw with `--guider`, if there is one.

    Raises:
        InputError: the pipeline knows no guiders, or the guider does not take its options.
    """
    if arguments.guider is None:
        return
    if not isinstance(pipeline, TCDiTPipeline):
        raise InputError(f"--guider needs a TCDiTPipeline, and this is a {type(pipeline).__name__}")
    guider_class = getattr(guiders, arguments.guider, None)
    if guider_class is None:
        raise InputError(f"--guider {arguments.guider}: this version of diffusers has none of that name; update it")
    known = list(inspect.signature(guider_class).parameters)
    for name in arguments.guider_options:
        if name not in known:
            raise InputError(f"--guider_options: {arguments.guider} has no {name!r}; it has {', '.join(known)}")
    try:
        with without_notice():
            guider = guider_class(**arguments.guider_options)
    except (ValueError, TypeError, ImportError) as error:
        raise InputError(f"--guider {arguments.guider}: {error}") from error
    pipeline.register_modules(guider=guider)
