r"""Conversion of foreign checkpoints to [`AutoencoderTC`]: a weight file and a map from its keys to the model's.

    python -m tcae_diffusers.models.convert weights.ckpt out/ --config tc-ae-f32c128 --key_map map.json

The map is a JSON object of regular expressions and what the keys that they match become. An expression must match the
whole key; the first one that does counts.

```json
{
  "enc\\.(\\d+)\\.qkv\\.weight": [
    "encoder.first_blocks.\\1.attn.to_q.weight",
    "encoder.first_blocks.\\1.attn.to_k.weight",
    "encoder.first_blocks.\\1.attn.to_v.weight"
  ],
  "module\\.(.*)": "\\1",
  "loss\\..*": null
}
```

A text renames, a list splits the tensor into equal parts along its first dimension, `null` drops the key on purpose.
"""

import difflib
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from accelerate import init_empty_weights
from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES
from diffusers.utils import logging

from .autoencoder_tc_presets import AUTOENCODER_TC_PRESETS
from .tcae.autoencoder_tc import AutoencoderTC

logger = logging.get_logger(__name__)

KeyTarget = str | list[str] | None
KeyMap = Mapping[str, KeyTarget] | Callable[[str], KeyTarget]

# Another codebase does not know our normalisation; without it the latent is left as the encoder gives it.
LATENT_STATISTICS = ("latent_mean", "latent_std")
MAX_LISTED = 8


def convert_checkpoint(
    checkpoint: str | os.PathLike | Mapping[str, torch.Tensor],
    config: str | os.PathLike | Mapping[str, Any],
    key_map: KeyMap,
    state_dict_key: str | None = None,
) -> AutoencoderTC:
    """
    Builds an [`AutoencoderTC`] from weights in another layout.

    Args:
        checkpoint (`str`, `os.PathLike` or state dict):
            A `.safetensors` file, or a PyTorch file that `torch.load(weights_only=True)` reads.
        config (`str`, `os.PathLike` or `dict`):
            Name of a preset, path to a `config.json` or its folder, or the config's arguments.
        key_map (`dict` or `Callable`):
            Regular expression -> new key, list of new keys (equal parts along the first dimension) or `None`, as at
            the top of this file; or a function from a key to the same.
        state_dict_key (`str`, *optional*): Where the weights lie in a nested checkpoint, for example `"model.ema"`.

    Returns:
        `AutoencoderTC`: in eval mode, fp32 unless the weights are otherwise.

    Raises:
        ValueError: naming every weight that is missing, left over, of a wrong shape or given twice.
        FileNotFoundError: if `checkpoint` does not exist.
    """
    state_dict = checkpoint if isinstance(checkpoint, Mapping) else read_checkpoint(checkpoint, state_dict_key)
    config = read_config(config)
    with init_empty_weights():
        model = AutoencoderTC.from_config(config)
    model.load_state_dict(convert_state_dict(state_dict, model.state_dict(), key_map), strict=True, assign=True)
    return model.eval()


def convert_state_dict(
    state_dict: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], key_map: KeyMap
) -> dict[str, torch.Tensor]:
    """
    Renames, splits and checks weights.

    Args:
        state_dict (`dict[str, torch.Tensor]`): Foreign weights.
        expected (`dict[str, torch.Tensor]`): Our state dict, of which keys and shapes are read: meta tensors do.
        key_map (`dict` or `Callable`): See [`convert_checkpoint`].

    Raises:
        ValueError: naming every weight that is missing, left over, of a wrong shape or given twice.
    """
    _check_key_map(key_map)
    converted: dict[str, torch.Tensor] = {}
    origin: dict[str, str] = {}
    problems: dict[str, list[str]] = {"no rule for": [], "unexpected": [], "wrong shape": [], "given twice": []}
    for key, tensor in state_dict.items():
        targets = _apply_key_map(key_map, key)
        if targets is _NO_RULE:
            problems["no rule for"].append(key)
            continue
        targets = [targets] if isinstance(targets, str) else targets or []
        if len(targets) > 1 and (tensor.ndim == 0 or tensor.shape[0] % len(targets)):
            problems["wrong shape"].append(f"{key} {tuple(tensor.shape)} cannot be split into {len(targets)} parts")
            continue
        for target, part in zip(targets, tensor.chunk(len(targets)) if len(targets) > 1 else [tensor], strict=False):
            if target not in expected:
                near = difflib.get_close_matches(target, expected, n=1)
                hint = f", did you mean {near[0]}?" if near else ""
                problems["unexpected"].append(f"{target} (from {key}{hint})")
            elif target in converted:
                problems["given twice"].append(f"{target} by {origin[target]} and {key}")
            elif _without_ones(part.shape) != _without_ones(expected[target].shape):
                problems["wrong shape"].append(
                    f"{target} expects {tuple(expected[target].shape)}, {key} gives {tuple(part.shape)}"
                )
            else:
                # Dimensions of 1 carry no order: a linear layer may come as a 1x1 convolution.
                converted[target], origin[target] = part.reshape(expected[target].shape).clone(), key

    _fill_latent_statistics(converted, expected)
    failed_targets = {line.split(" ")[0] for line in problems["wrong shape"]}
    problems["missing"] = [key for key in expected if key not in converted and key not in failed_targets]
    lines = [f"  {kind}: {_listed(found)}" for kind, found in problems.items() if found]
    if lines:
        raise ValueError("The key map does not turn this checkpoint into the model's weights:\n" + "\n".join(lines))
    return converted


def map_single_file_checkpoint(
    checkpoint: Mapping[str, torch.Tensor], config: Mapping[str, Any], key_map: KeyMap | None = None
) -> dict[str, torch.Tensor]:
    """What `AutoencoderTC.from_single_file(file, config=, key_map=)` does with weights in another layout than ours."""
    with init_empty_weights():
        expected = AutoencoderTC.from_config(config).state_dict()
    return convert_state_dict(checkpoint, expected, (lambda key: key) if key_map is None else key_map)


# Read by from_single_file, which refuses every class that is not in this table.
SINGLE_FILE_LOADABLE_CLASSES["AutoencoderTC"] = {"checkpoint_mapping_fn": map_single_file_checkpoint}


def read_checkpoint(path: str | os.PathLike, state_dict_key: str | None = None) -> dict[str, torch.Tensor]:
    """
    Reads a weight file without running code from it.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not a checkpoint, holds no tensors at `state_dict_key`, or has no such key.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no checkpoint file {path}.")
    try:
        if path.suffix == ".safetensors":
            state_dict: Any = safetensors.torch.load_file(path)
        else:
            state_dict = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"{path} cannot be read as a checkpoint of tensors: {error}") from error

    for part in state_dict_key.split(".") if state_dict_key else ():
        if not isinstance(state_dict, Mapping) or part not in state_dict:
            found = list(state_dict)[:MAX_LISTED] if isinstance(state_dict, Mapping) else type(state_dict).__name__
            raise ValueError(f"{path} has no {part!r} of state_dict_key {state_dict_key!r}, only {found}.")
        state_dict = state_dict[part]
    tensors = {}
    if isinstance(state_dict, Mapping):
        tensors = {key: value for key, value in state_dict.items() if isinstance(value, torch.Tensor)}
    if not tensors:
        found = list(state_dict)[:MAX_LISTED] if isinstance(state_dict, Mapping) else type(state_dict).__name__
        raise ValueError(
            f"{path} has no tensors at its top level, only {found}; pass their location as state_dict_key."
        )
    return tensors


def read_config(config: str | os.PathLike | Mapping[str, Any]) -> dict[str, Any]:
    """Config arguments by preset name, `config.json`, its folder, or as they are."""
    if isinstance(config, Mapping):
        return dict(config)
    if str(config) in AUTOENCODER_TC_PRESETS:
        return dict(AUTOENCODER_TC_PRESETS[str(config)])
    path = Path(config)
    path = path / AutoencoderTC.config_name if path.is_dir() else path
    if not path.is_file():
        presets = ", ".join(AUTOENCODER_TC_PRESETS)
        raise ValueError(
            f"config {str(config)!r} is neither a file, nor a folder with a config.json, nor one of {presets}."
        )
    return read_json(path, "config")


def read_json(path: Path, name: str) -> dict[str, Any]:
    """
    Raises:
        ValueError: the content is no JSON, or no JSON object.
        OSError: there is no such file.
    """
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{name} {path} is not JSON ({error}).") from error
    if not isinstance(content, dict):
        raise ValueError(f"{name} {path} is no JSON object.")
    return content


_NO_RULE = object()


def _check_key_map(key_map: Any) -> None:
    """
    Raises:
        ValueError: it is neither a function nor regular expressions with what they stand for.
    """
    if callable(key_map):
        return
    if not isinstance(key_map, Mapping):
        raise ValueError(f"key_map is a {type(key_map).__name__}; expected regular expressions, each with a new key.")
    for pattern, target in key_map.items():
        for one in target if isinstance(target, list) else [target]:
            if not isinstance(one, str) and (one is not None or isinstance(target, list)):
                raise ValueError(
                    f"key_map: {pattern!r} to {target!r}; expected a new key, a list of new keys, or null to drop it."
                )


def _apply_key_map(key_map: KeyMap, key: str) -> Any:
    if callable(key_map):
        return key_map(key)
    for pattern, target in key_map.items():
        try:
            if match := re.fullmatch(pattern, key):
                expanded = [match.expand(one) for one in (target if isinstance(target, list) else [target]) if one]
                return expanded if isinstance(target, list) else target and expanded[0]
        except re.error as error:
            raise ValueError(f"key_map: {pattern!r} to {target!r} cannot be applied: {error}") from error
    return _NO_RULE


def _fill_latent_statistics(converted: dict[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    absent = [name for name in LATENT_STATISTICS if name not in converted]
    if len(absent) == len(LATENT_STATISTICS):
        logger.warning(
            "The checkpoint has no latent statistics, so latents are not normalised. Measure the mean and standard "
            "deviation of each channel on training images and call set_latent_statistics() before training a "
            "diffusion model."
        )
        shape = expected[LATENT_STATISTICS[0]].shape
        converted.update(zip(LATENT_STATISTICS, (torch.zeros(shape), torch.ones(shape)), strict=True))


def _without_ones(shape: torch.Size) -> list[int]:
    return [size for size in shape if size != 1]


def _listed(found: list[str]) -> str:
    more = len(found) - MAX_LISTED
    return ", ".join(found[:MAX_LISTED]) + (f" and {more} more" if more > 0 else "")
