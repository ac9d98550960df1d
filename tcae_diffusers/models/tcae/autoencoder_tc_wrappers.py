# Copyright 2026 The tcae_diffusers authors. Licensed under the Apache License, Version 2.0.
"""
`AutoencoderTC` for pipelines of diffusers that rely on the inside of their own autoencoder: the same weights, files
and latents, with what these pipelines read besides. Latents are normalised inside the model, so all statistics that
they apply outside of it are the identity.

    vae = AutoencoderTCWithFrames.from_pretrained("folder/of/an/AutoencoderTC")
"""

import math
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, TypeVar

import torch
from diffusers.configuration_utils import FrozenDict
from diffusers.models.autoencoders.vae import DecoderOutput

from .autoencoder_tc import AutoencoderTC, AutoencoderTCEncoderOutput

WrapperType = TypeVar("WrapperType", bound="_Wrapper")


class _Wrapper(AutoencoderTC):
    """Adds to the config what pipelines read, and keeps it out of what is saved."""

    @property
    def _read_by_pipelines(self) -> dict[str, Any]:
        raise NotImplementedError

    @property
    def config(self) -> FrozenDict:
        """The config of the autoencoder and what pipelines read besides."""
        return FrozenDict({**self._internal_dict, **self._read_by_pipelines})

    @classmethod
    def from_config(cls, config: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """From the config of an [`AutoencoderTC`] or of a wrapper."""
        own = {"batch_norm_eps", "z_dim", "latents_mean", "latents_std"}
        return super().from_config({key: value for key, value in config.items() if key not in own}, *args, **kwargs)

    @classmethod
    def wrap(cls: type[WrapperType], autoencoder: AutoencoderTC) -> WrapperType:
        """
        A wrapper that shares the weights of `autoencoder`, with its device, data type and mode, its tiles and slices;
        frozen and fused where it is.
        """
        with torch.device("meta"):
            wrapper = cls.from_config(autoencoder.config)
            if any(getattr(module, "fused_projections", False) for module in autoencoder.modules()):
                wrapper.fuse_qkv_projections()
        # Loading gives shared parameters the flag of those that they replace.
        for name, parameter in wrapper.named_parameters():
            parameter.requires_grad_(autoencoder.get_parameter(name).requires_grad)
        wrapper.load_state_dict(autoencoder.state_dict(keep_vars=True), assign=True)
        for name, value in vars(autoencoder).items():
            if name.startswith(("use_", "tile_")):
                setattr(wrapper, name, value)
        return wrapper.train(autoencoder.training)


class AutoencoderTCWithBatchNorm(_Wrapper):
    r"""
    For pipelines that normalise latents, packed in 2x2 positions, by the running statistics of a batch norm: FLUX.2
    and FLUX.3, Ideogram 4, ERNIE-Image. Arguments are those of [`AutoencoderTC`].
    """

    _batch_norm_eps = 1e-5

    @property
    def _read_by_pipelines(self) -> dict[str, Any]:
        return {"batch_norm_eps": self._batch_norm_eps}

    @property
    def bn(self) -> SimpleNamespace:
        """`running_mean` and `running_var`, each `(4 * latent_channels,)`, that change nothing."""
        channels = 4 * self._internal_dict["latent_channels"]
        # Some pipelines add their own constant, which is this one, and not that of the config.
        variance = torch.full((channels,), 1 - self._batch_norm_eps, device=self.device)
        return SimpleNamespace(running_mean=torch.zeros_like(variance), running_var=variance)


class AutoencoderTCWithFrames(_Wrapper):
    r"""
    For pipelines that take images for videos of one frame and normalise latents by a mean and a deviation for each
    channel: Qwen-Image, Krea 2; and GLM-Image, which does the latter. Arguments are those of [`AutoencoderTC`].

    `encode` and `decode` take `(B, C, 1, H, W)` and return as much; without the frame axis they are those of
    [`AutoencoderTC`].
    """

    @property
    def _read_by_pipelines(self) -> dict[str, Any]:
        channels = self._internal_dict["latent_channels"]
        return {"z_dim": channels, "latents_mean": [0.0] * channels, "latents_std": [1.0] * channels}

    @property
    def temperal_downsample(self) -> list[bool]:
        """As many entries as the compression ratio has factors of two, which is how pipelines compute it."""
        return [False] * int(math.log2(self.spatial_compression_ratio))

    def encode(self, x: torch.Tensor, return_dict: bool = True) -> AutoencoderTCEncoderOutput | tuple[torch.Tensor]:
        """
        Images `(B, 3, 1, H, W)` in [-1, 1] to latents `(B, latent_channels, 1, h, w)`.

        Raises:
            ValueError: for more than one frame, or a size that is not a multiple of the compression ratio.
        """
        if x.ndim != 5:
            return super().encode(x, return_dict)
        latent = super().encode(_only_frame(x), return_dict=False)[0][:, :, None]
        return AutoencoderTCEncoderOutput(latent=latent) if return_dict else (latent,)

    def decode(
        self, z: torch.Tensor, return_dict: bool = True, generator: torch.Generator | None = None
    ) -> DecoderOutput | tuple[torch.Tensor]:
        """
        Latents `(B, latent_channels, 1, h, w)` to images `(B, 3, 1, H, W)`, about [-1, 1].

        Raises:
            ValueError: for more than one frame, or another number of channels.
        """
        if z.ndim != 5:
            return super().decode(z, return_dict, generator)
        sample = super().decode(_only_frame(z), return_dict=False)[0][:, :, None]
        return DecoderOutput(sample=sample) if return_dict else (sample,)


def _only_frame(video: torch.Tensor) -> torch.Tensor:
    if video.shape[2] != 1:
        raise ValueError(
            f"a video of {video.shape[2]} frames, shape {tuple(video.shape)}, was passed to an autoencoder of images; "
            "expected (B, C, 1, H, W)."
        )
    return video[:, :, 0]
