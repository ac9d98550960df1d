"""Hashes by which results, latents and the encoders that they come from recognise each other."""

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from diffusers import ModelMixin

from ..files import sha256_of_tensors
from .adapters import adapt
from .model_fingerprint import config_sha256

# Calibrating a model after its latents were cached must not make it another model; the statistics are compared apart.
STATISTICS_BUFFERS = ("latent_mean", "latent_std")
# Nor does another decoder touch the latents. These prefixes are those of all autoencoders of diffusers.
DECODER_PREFIXES = ("decoder.", "post_quant_conv.")
DECODER_CONFIG_PREFIX = "decoder_"


@dataclass(frozen=True)
class TokenizerFingerprint:
    """What identifies the encoder that latents came from.

    Args:
        class_name (`str`): `"AutoencoderTC"`, `"AutoencoderDC"`, ...
        config_sha256 (`str`): Of the config as JSON, without entries that begin with an underscore or describe the
            decoder alone (`decoder_...`), and without those by which pipelines scale a latent once it is encoded.
        weights_sha256 (`str`): Of names, dtypes, shapes and bytes of the encoder's part of the state dict: without
            the decoder, `latent_mean` and `latent_std`.
        latent_mean (`tuple[float, ...]`, *optional*): The model's per-channel statistics at that time; None for a
            model without such buffers and for one that was never calibrated (all 0).
        latent_std (`tuple[float, ...]`, *optional*): The same (all 1).
        scaling (`tuple[float, float]`, *optional*): The scaling and shift factors for pipelines at that time; None for
            a model that scales its latent itself.
    """

    class_name: str
    config_sha256: str
    weights_sha256: str
    latent_mean: tuple[float, ...] | None = None
    latent_std: tuple[float, ...] | None = None
    scaling: tuple[float, float] | None = None

    @classmethod
    def of(cls, model: ModelMixin) -> "TokenizerFingerprint":
        """Fingerprint of a diffusers autoencoder (or any module with a `config` mapping). Hashes about 1 GB/s."""
        statistics = {}
        if is_calibrated(model):
            statistics = {name: tuple(getattr(model, name).double().tolist()) for name in STATISTICS_BUFFERS}
        adapter = adapt(model)
        return cls(
            class_name=type(model).__name__,
            config_sha256=config_sha256(encoder_config(model.config, adapter.scaling_entries)),
            weights_sha256=weights_sha256(model.state_dict()),
            scaling=adapter.pipeline_scaling if adapter.scaling_entries else None,
            **statistics,
        )

    @classmethod
    def from_dict(cls, values: dict) -> "TokenizerFingerprint":
        tuples = {name: values.get(name) and tuple(values[name]) for name in (*STATISTICS_BUFFERS, "scaling")}
        return cls(**{**values, **tuples})

    def to_dict(self) -> dict:
        """JSON-ready, and equal to what [`from_dict`] was given; without a scaling as manifests always were."""
        values = asdict(self)
        if self.scaling is None:
            del values["scaling"]
        return json.loads(json.dumps(values))

    def difference(self, other: "TokenizerFingerprint") -> str | None:
        """What makes `other` another encoder, in words, or None. Statistics do not count."""
        for name in ("class_name", "config_sha256", "weights_sha256"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                return f"{name} {mine[:16]} is not {theirs[:16]}"
        return None

    def difference_of_latents(self, other: "TokenizerFingerprint") -> str | None:
        """What makes the latents of `other` others, in words, or None: another encoder, or other statistics."""
        if difference := self.difference(other):
            return f"another encoder, {difference}"
        if (self.latent_mean, self.latent_std) != (other.latent_mean, other.latent_std):
            return "the same encoder, but other latent_mean and latent_std"
        if self.scaling != other.scaling:
            return f"the same encoder, but scaling and shift factors {other.scaling}, not {self.scaling}"
        return None


def is_calibrated(model: torch.nn.Module) -> bool | None:
    """Whether statistics of the latent were set, or `None` for a model that has no place for them."""
    mean, std = (getattr(model, name, None) for name in STATISTICS_BUFFERS)
    if not (isinstance(mean, torch.Tensor) and isinstance(std, torch.Tensor)):
        return None
    return not (bool((mean == 0).all()) and bool((std == 1).all()))


def encoder_config(config: Mapping[str, Any], scaling_entries: Collection[str]) -> dict[str, Any]:
    """What a config says of more than the decoder alone and `scaling_entries`."""
    encoder = {key: value for key, value in dict(config).items() if not key.startswith(DECODER_CONFIG_PREFIX)}
    return {key: value for key, value in encoder.items() if key not in scaling_entries}


def weights_sha256(state_dict: dict[str, torch.Tensor]) -> str:
    """sha256 of the encoder's part of a state dict."""
    return sha256_of_tensors(
        (name, tensor)
        for name, tensor in state_dict.items()
        if name not in STATISTICS_BUFFERS and not name.startswith(DECODER_PREFIXES)
    )
