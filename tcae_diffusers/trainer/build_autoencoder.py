"""The autoencoder that a run trains, and the sizes that follow from it."""

import difflib
import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import ModelMixin

from ..data.images.image_size_arguments import ImageSizeArguments
from ..data.images.sources import drawing_resolution
from ..errors import InputError
from ..metrics.reconstruction import check_reconstruction_size
from ..models.adapters import adapt
from ..models.autoencoder_tc_presets import AUTOENCODER_TC_PRESETS
from ..models.finer_patches import with_finer_patches
from ..models.fingerprint import DECODER_CONFIG_PREFIX
from ..models.tcae.autoencoder_tc import AutoencoderTC
from ..models.whole_weights import load_whole

# How files of weights end, whatever they are called.
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")


def require_weights(name: str, why: str) -> None:
    """
    Raises:
        InputError: `--autoencoder name` is no folder of an autoencoder with weights.
    """
    if not _weights_in(Path(name)):
        raise InputError(f"{why}; --autoencoder {name} has no weights, pass a folder that has.")


def _weights_in(folder: Path) -> list[Path]:
    return list(folder.glob("diffusion_pytorch_model*"))


def build_autoencoder(name: str, overrides: dict[str, Any] | None = None) -> ModelMixin:
    """
    The tokenizer to train. Its config decides the class, so baselines train through the same script.

    Args:
        name (`str`):
            A preset of [`AutoencoderTC`]; or a folder with a `config.json` of any autoencoder of diffusers, and
            weights to start from if there are any; or a `.json` file of that kind.
        overrides (`dict`, *optional*):
            Config arguments that replace the named ones. A smaller `patch_size` than that of an [`AutoencoderTC`] with
            weights divides its patches, see [`with_finer_patches`].

    Raises:
        ValueError: unknown preset, class or config argument, a config that does not fit together, or broken weights.
    """
    overrides = overrides or {}
    path, option = Path(name), f"--autoencoder {name}"
    if not path.exists() and path.suffix != ".json":
        if name not in AUTOENCODER_TC_PRESETS:
            close = difflib.get_close_matches(name, AUTOENCODER_TC_PRESETS, n=3)
            hint = f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(AUTOENCODER_TC_PRESETS)}."
            raise ValueError(f"{option} is neither a preset nor a folder with a config.json; {hint}")
        return _construct(AutoencoderTC, {**AUTOENCODER_TC_PRESETS[name], **overrides}, option)
    config_file = path / "config.json" if path.is_dir() else path
    try:
        config = json.loads(config_file.read_text())
    except FileNotFoundError:
        raise ValueError(f"{option}: {config_file} does not exist.") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{option}: {config_file} is not JSON ({error}).") from error
    class_name = config.get("_class_name", "AutoencoderTC")
    model_class = getattr(diffusers, class_name, None)
    if model_class is None or not hasattr(model_class, "encode"):
        raise ValueError(
            f"{option}: {config_file} has the class {class_name!r}, which is not an autoencoder of "
            f"diffusers {diffusers.__version__} or of this package."
        )
    if not path.is_dir() or not _weights_in(path):
        unread = [file.name for suffix in _WEIGHTS for file in path.glob(f"*{suffix}")] if path.is_dir() else []
        if unread:
            raise InputError(
                f"{option} holds {unread[0]}, and diffusers reads weights from diffusion_pytorch_model.safetensors; "
                "save the model with save_pretrained(), or remove the file to start from random weights."
            )
        return _construct(model_class, {**_public(config), **overrides}, option)
    _check_keys(overrides, _config_arguments(model_class), model_class.__name__, option)
    patch_size = overrides.get("patch_size") if model_class is AutoencoderTC else None
    if patch_size is not None:
        overrides = {key: value for key, value in overrides.items() if key != "patch_size"}
    try:
        model = load_whole(model_class, name, low_cpu_mem_usage=False, **overrides)
    except InputError as error:
        remedy = f" (--autoencoder_overrides {json.dumps(overrides)} may be why)" if overrides else ""
        raise InputError(f"{option}: {error}{remedy}") from error
    except (OSError, ValueError) as error:
        raise ValueError(f"{option}: its weights cannot be loaded: {error}") from error
    if patch_size is None:
        return model
    try:
        return with_finer_patches(model, patch_size)
    except InputError as error:
        raise InputError(f"--autoencoder_overrides of {name}: {error}") from error


def with_new_decoder(autoencoder: ModelMixin, decoder_config: dict[str, Any]) -> ModelMixin:
    """
    An autoencoder with the encoder and the latent statistics of the one given, and a decoder of another shape with
    random weights. Latents of the one are latents of the other.

    Args:
        decoder_config (`dict`):
            Entries of the config that describe the decoder alone, `decoder_...`; they replace those of `autoencoder`.

    Raises:
        InputError: an entry that the class does not have or that describes more than the decoder.
        ValueError: values that do not fit together.
    """
    model_class, option = type(autoencoder), "--new_decoder"
    known = {name for name in _config_arguments(model_class) if name.startswith(DECODER_CONFIG_PREFIX)}
    if not known:
        raise InputError(
            f"{option} {decoder_config}: the config of {model_class.__name__} has no entries of its decoder alone, so "
            "its decoder can only be fine-tuned; omit the option."
        )
    _check_keys(decoder_config, known, f"the decoder of {model_class.__name__}", option)
    renewed = _construct(model_class, {**_public(autoencoder.config), **decoder_config}, option)
    adapter = adapt(autoencoder)
    kept = {name: value for name, value in autoencoder.state_dict().items() if not adapter.is_decoder(name)}
    renewed.load_state_dict({**renewed.state_dict(), **kept})
    return renewed


def _public(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a config says of the model; the rest is of diffusers."""
    return {key: value for key, value in config.items() if not key.startswith("_")}


def _config_arguments(model_class: type) -> set[str]:
    return set(inspect.signature(model_class).parameters)


def _check_keys(values: dict[str, Any], known: set[str], whose: str, option: str) -> None:
    for key in values:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=3)
            hint = f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(sorted(known))}."
            raise InputError(f"{option}: {whose} has no config argument {key!r}; {hint}")


def _construct(model_class: type, values: dict[str, Any], option: str) -> ModelMixin:
    noted = _noted_beside_arguments(model_class, values)
    values = {key: value for key, value in values.items() if key not in noted}
    _check_keys(values, _config_arguments(model_class), model_class.__name__, option)
    try:
        return model_class(**values)
    except TypeError as error:
        raise ValueError(f"{option}: {model_class.__name__} cannot be built: {error}") from error


def _noted_beside_arguments(model_class: type, values: dict[str, Any]) -> set[str]:
    """Keys that no argument has, and that the class writes into its config by itself, as AutoencoderTiny does."""
    arguments = _config_arguments(model_class)
    unknown = values.keys() - arguments
    if not unknown:
        return set()
    try:
        with torch.device("meta"):
            model = model_class(**{key: value for key, value in values.items() if key in arguments})
    except (TypeError, ValueError):
        # The unknown key may be the reason: it is named first.
        return set()
    return unknown & model.config.keys()


def resolve_sizes(arguments: ImageSizeArguments, autoencoder: ModelMixin) -> None:
    """
    Fill in the sizes that follow from the model, and check them.

    Raises:
        InputError: no resolution to be known, one that is no multiple of the compression ratio, one that
            reconstructions do not have, or several sizes for a model that has one.
    """
    adapter = adapt(autoencoder)
    arguments.resolution = arguments.resolution or adapter.image_size
    if not isinstance(arguments.resolution, int):
        raise InputError(f"the config of {adapter.class_name} has no sample_size; pass --resolution.")
    arguments.check_extra_resolutions()
    arguments.data_resolution = arguments.data_resolution or drawing_resolution(max(arguments.resolutions))
    if adapter.decodes_any_size:
        adapter.check_side("--resolution", arguments.resolution)
        for side in arguments.extra_resolutions:
            adapter.check_side("--extra_resolutions", side)
    elif arguments.has_several_sizes:
        raise InputError(
            f"{adapter.class_name} resizes images to one size; omit --extra_resolutions and --aspect_ratio_buckets."
        )
    check_reconstruction_size(autoencoder, arguments.resolution, arguments.resolution)
