"""The autoencoder that a run trains, and the sizes that follow from it."""

import difflib
import inspect
import json
from pathlib import Path
from typing import Any

import diffusers
from diffusers import ModelMixin
from safetensors import SafetensorError

from ..models.adapters import adapt
from ..models.autoencoder_tc_presets import AUTOENCODER_TC_PRESETS
from ..models.tcae.autoencoder_tc import AutoencoderTC
from .tokenizer_arguments import ReconstructionArguments


def build_autoencoder(name: str, overrides: dict[str, Any] | None = None) -> ModelMixin:
    """
    The tokenizer to train. Its config decides the class, so baselines train through the same script.

    Args:
        name (`str`):
            A preset of [`AutoencoderTC`]; or a folder with a `config.json` of any autoencoder of diffusers, and
            weights to start from if there are any; or a `.json` file of that kind.
        overrides (`dict`, *optional*): Config arguments that replace the named ones.

    Raises:
        ValueError: unknown preset, class or config argument, a config that does not fit together, or broken weights.
    """
    overrides = overrides or {}
    path = Path(name)
    if not path.exists() and path.suffix != ".json":
        if name not in AUTOENCODER_TC_PRESETS:
            close = difflib.get_close_matches(name, AUTOENCODER_TC_PRESETS, n=3)
            hint = f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(AUTOENCODER_TC_PRESETS)}."
            raise ValueError(f"--autoencoder {name} is neither a preset nor a folder with a config.json; {hint}")
        return _construct(AutoencoderTC, {**AUTOENCODER_TC_PRESETS[name], **overrides}, name)
    config_file = path / "config.json" if path.is_dir() else path
    try:
        config = json.loads(config_file.read_text())
    except FileNotFoundError:
        raise ValueError(f"--autoencoder {name}: {config_file} does not exist.") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"--autoencoder {name}: {config_file} is not JSON ({error}).") from error
    class_name = config.get("_class_name", "AutoencoderTC")
    model_class = getattr(diffusers, class_name, None)
    if model_class is None or not hasattr(model_class, "encode"):
        raise ValueError(
            f"--autoencoder {name}: {config_file} has the class {class_name!r}, which is not an autoencoder of "
            f"diffusers {diffusers.__version__} or of this package."
        )
    if not path.is_dir() or not any(path.glob("diffusion_pytorch_model*")):
        values = {key: value for key, value in config.items() if not key.startswith("_")}
        return _construct(model_class, {**values, **overrides}, name)
    _check_keys(model_class, overrides, name)
    try:
        return model_class.from_pretrained(name, low_cpu_mem_usage=False, **overrides)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"--autoencoder {name}: its weights cannot be loaded: {error}") from error


def _check_keys(model_class: type, values: dict[str, Any], name: str) -> None:
    known = inspect.signature(model_class.__init__).parameters.keys() - {"self"}
    for key in values:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=3)
            hint = f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(sorted(known))}."
            raise ValueError(f"--autoencoder {name}: {model_class.__name__} has no config argument {key!r}; {hint}")


def _construct(model_class: type, values: dict[str, Any], name: str) -> ModelMixin:
    _check_keys(model_class, values, name)
    try:
        return model_class(**values)
    except TypeError as error:
        raise ValueError(f"--autoencoder {name}: {model_class.__name__} cannot be built: {error}") from error


def resolve_sizes(arguments: ReconstructionArguments, autoencoder: ModelMixin) -> None:
    """
    Fill in the sizes that follow from the model, and check them.

    Raises:
        ValueError: no resolution to be known, or one that is no multiple of the compression ratio.
    """
    arguments.resolution = arguments.resolution or autoencoder.config.get("sample_size")
    if arguments.resolution is None:
        raise ValueError(f"the config of {type(autoencoder).__name__} has no sample_size; pass --resolution.")
    arguments.data_resolution = arguments.data_resolution or 2 * arguments.resolution
    check_multiple("resolution", arguments.resolution, adapt(autoencoder).spatial_ratio)


def check_multiple(name: str, size: int, ratio: int) -> None:
    """Raises `ValueError` if `size` pixels are not whole latent positions."""
    if size % ratio:
        raise ValueError(
            f"--{name} {size} is not a multiple of the compression ratio {ratio}; use {max(1, size // ratio) * ratio}"
            f" or {(size // ratio + 1) * ratio}."
        )
