"""Saved autoencoders of any class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import ModelMixin

from ...errors import InputError
from ..whole_weights import load_whole


def load_autoencoder(
    path: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype | None = None
) -> ModelMixin:
    """Loads an autoencoder in evaluation mode from a saved folder or a Hub name.

    Args:
        path: A folder written by `save_pretrained` (also a pipeline folder: its `vae/` is taken), or a Hub repository.
        device, dtype: Where and in which precision to run; fp32 if `dtype` is `None`, whatever the file holds.

    Raises:
        InputError: If the folder is missing a `config.json` or names a class that cannot be loaded, or its weights are
            not those of its config.
    """
    folder = Path(path)
    if (folder / "model_index.json").is_file():
        folder = folder / "vae"
    looks_local = folder.exists() or str(path).startswith((".", "/", "~")) or str(path).count("/") > 1
    if looks_local and not (folder / "config.json").is_file():
        raise InputError(
            f"no autoencoder at {path}: {folder / 'config.json'} does not exist. Expected a folder written by "
            "save_pretrained(), a pipeline folder with a vae/ in it, or the name of a Hub repository."
        )
    target = str(folder) if looks_local else str(path)
    try:
        config = diffusers.AutoencoderKL.load_config(target)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read the autoencoder config of {path}: {error}") from error
    class_name = config.get("_class_name")
    model_class = getattr(diffusers, str(class_name), None)
    if model_class is None or not hasattr(model_class, "encode"):
        raise InputError(
            f"{path} holds a {class_name!r}, which is not an autoencoder of diffusers {diffusers.__version__} or of "
            "this package; expected AutoencoderTC, AutoencoderDC, AutoencoderKL, AutoencoderTiny, AutoencoderRAE or "
            "similar."
        )
    options: dict[str, Any] = {"dtype": dtype} if dtype else {}
    try:
        model = load_whole(model_class, target, **options)
    except OSError as error:
        raise InputError(f"cannot load the weights of {path}: {error}") from error
    return model.to(device).eval().requires_grad_(False)
