"""Held-out reconstructions during tokenizer training: PSNR and a picture in the trackers."""

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from diffusers import ModelMixin
from diffusers.training_utils import EMAModel
from torchvision.utils import make_grid

from ..data.image_sources import build_image_source
from ..data.multi_crop import center_crop, to_uint8

logger = get_logger(__name__)


class ReconstructionPreview:
    """
    A fixed, evenly spaced choice of held-out images.

    Args:
        images (`torch.Tensor` of shape `(N, 3, H, W)`): uint8.
    """

    num_pictured = 16
    batch_size = 32

    def __init__(self, images: torch.Tensor):
        self.images = images

    @classmethod
    def from_spec(
        cls, spec: str | None, data_resolution: int | None, resolution: int, num_images: int
    ) -> "ReconstructionPreview | None":
        """Read `num_images` images of the source that `spec` names; `None` without one."""
        if spec is None:
            return None
        source = build_image_source(spec, resolution=data_resolution)
        chosen = np.linspace(0, len(source) - 1, min(num_images, len(source))).round().astype(int)
        return cls(torch.stack([to_uint8(center_crop(source[int(index)][0], resolution)) for index in chosen]))

    @torch.no_grad()
    def log(self, accelerator: Accelerator, autoencoder: ModelMixin, ema: EMAModel, step: int) -> float:
        """
        Reconstruct with the averaged weights, log `heldout/psnr` in dB and a grid of originals over reconstructions.

        Images are rounded to 8 bits before the PSNR, as they would be when saved; every rank computes the same.
        """
        parameters = [parameter for parameter in autoencoder.parameters() if parameter.requires_grad]
        ema.store(parameters)
        ema.copy_to(parameters)
        # Module by module: a frozen encoder stays in evaluation mode.
        training = {module: module.training for module in autoencoder.modules()}
        autoencoder.eval()
        try:
            reconstructions = []
            for images in self.images.split(self.batch_size):
                sample = autoencoder(images.to(accelerator.device).float() / 127.5 - 1).sample
                reconstructions.append(((sample + 1) * 127.5).round().clamp(0, 255).to("cpu", torch.uint8))
        finally:
            ema.restore(parameters)
            for module, mode in training.items():
                module.training = mode
        reconstructions = torch.cat(reconstructions)
        errors = (reconstructions.float() - self.images.float()).square().flatten(1).mean(dim=1)
        psnr = float((10 * torch.log10(255.0**2 / errors.clamp(min=1e-10))).mean())
        accelerator.log({"heldout/psnr": psnr}, step=step)
        self._log_picture(accelerator, reconstructions, step)
        logger.info(f"step {step}: held-out PSNR {psnr:.2f} dB over {len(self.images)} images")
        return psnr

    def _log_picture(self, accelerator: Accelerator, reconstructions: torch.Tensor, step: int) -> None:
        spacing = np.linspace(0, len(self.images) - 1, min(self.num_pictured, len(self.images))).round().astype(int)
        rows = torch.cat([self.images[spacing], reconstructions[spacing]])
        grid = make_grid(rows, nrow=len(spacing), padding=2, pad_value=255)
        for tracker in accelerator.trackers:
            if tracker.name == "tensorboard":
                tracker.writer.add_image("heldout/original over reconstruction", grid, step)
