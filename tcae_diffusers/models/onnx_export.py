# Copyright 2026 The tcae_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Encoder and decoder of an autoencoder as ONNX files."""

from pathlib import Path

import torch
import torch.nn as nn
from torch.export import Dim

from .tcae.autoencoder_tc import AutoencoderTC


class _Method(nn.Module):
    """`encode` or `decode` of a model as a module."""

    def __init__(self, model: AutoencoderTC, name: str):
        super().__init__()
        self.model, self.name = model, name

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return getattr(self.model, self.name)(x, return_dict=False)[0]


def export_onnx(model: AutoencoderTC, folder: str | Path) -> tuple[Path, Path]:
    """
    Write `encoder.onnx` and `decoder.onnx`; both take any batch and any size that the model takes.

    The latent is the one that `encode` returns and `decode` takes: normalised per channel. Needs the packages `onnx`
    and `onnxscript`.

    Args:
        model ([`AutoencoderTC`]): The model; its dtype and device are those of the export. Tiling and slicing are left
            out: they depend on the size of the image.
        folder (`str` or `Path`): Where to write; made if missing.

    Returns:
        `tuple[Path, Path]`: `encoder.onnx` (input `images` `(B, C, H, W)`, output `latent`) and `decoder.onnx` (input
        `latent`, output `images`).
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config, ratio = model.config, model.spatial_compression_ratio
    like = {"device": model.device, "dtype": model.dtype}
    # Sizes that differ from each other, lest the exporter takes two dimensions for one.
    latent_size = (4, 6)
    batch, height, width = Dim("batch"), Dim("height", min=1, max=4096), Dim("width", min=1, max=4096)
    exports = (
        (
            "encoder.onnx",
            _Method(model, "encode"),
            torch.zeros(2, config.in_channels, *(ratio * size for size in latent_size), **like),
            {0: batch, 2: ratio * height, 3: ratio * width},
            ("images", "latent"),
        ),
        (
            "decoder.onnx",
            _Method(model, "decode"),
            torch.zeros(2, config.latent_channels, *latent_size, **like),
            {0: batch, 2: height, 3: width},
            ("latent", "images"),
        ),
    )
    was_training, use_tiling, use_slicing = model.training, model.use_tiling, model.use_slicing
    model.eval().use_tiling = model.use_slicing = False
    try:
        for name, module, example, dynamic_shape, (input_name, output_name) in exports:
            with torch.no_grad():
                torch.onnx.export(
                    module.eval(),
                    (example,),
                    str(folder / name),
                    input_names=[input_name],
                    output_names=[output_name],
                    dynamic_shapes=(dynamic_shape,),
                    dynamo=True,
                    verbose=False,
                )
    finally:
        model.train(was_training)
        model.use_tiling, model.use_slicing = use_tiling, use_slicing
    return folder / "encoder.onnx", folder / "decoder.onnx"
