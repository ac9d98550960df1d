"""Held-out reconstructions during tokenizer training: figures and pictures in the trackers."""

import os
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from diffusers import ModelMixin
from diffusers.training_utils import EMAModel
from PIL import Image
from torchvision.utils import make_grid

from ..data.images.center_crop import center_crop
from ..data.images.multi_crop import to_uint8
from ..data.images.pixel_range import from_signed, to_signed
from ..data.images.sources import build_image_source
from ..metrics.component_colours import component_colours, feature_maps
from ..metrics.features import FeatureNetwork
from ..metrics.frechet import FrechetStatistics, frechet_distance
from ..metrics.image_measures.psnr import psnr
from ..metrics.image_measures.structural_similarity import ssim
from ..metrics.latent_shape import spectrum_figures
from ..metrics.names import metric_name
from ..models.adapters import adapt
from .averages import averaged_weights
from .tokenizer_arguments import ReconstructionArguments
from .trackers import log_picture

logger = get_logger(__name__)


class ReconstructionPreview:
    """
    Reconstructs a fixed, evenly spaced choice of held-out images with the averaged weights.

    Args:
        images (`torch.Tensor` of shape `(N, 3, H, W)`): uint8.
        folder (`Path`): Where pictures are written as PNG besides the trackers.
        extractor (`str`, *optional*): Feature network of an rFD; none is measured without.
        generated (`torch.Tensor` of shape `(M, c, h, w)`, *optional*):
            Latents that a diffusion model drew, as the autoencoder decodes them. The images that they decode to are
            pictured and, with a feature network, compared with `images`: a gFD.
    """

    num_pictured = 16
    batch_size = 32

    def __init__(self, images: torch.Tensor, folder: Path, extractor: str | None, generated: torch.Tensor | None):
        self.images = images
        self.folder = folder
        self.generated = generated
        self.network = None if extractor is None else FeatureNetwork(extractor)
        self.reference = None if self.network is None else self._statistics(self.network, images)

    @torch.no_grad()
    def log(self, accelerator: Accelerator, autoencoder: ModelMixin, ema: EMAModel, step: int) -> float:
        """
        Log `heldout/psnr` (dB), `heldout/ssim`, the latent's effective rank and least channel deviation, an rFD if
        there is a feature network, and two pictures: originals over reconstructions, and the principal components of
        tokens and latents; with generated latents, a gFD and a picture of them too. Every rank computes the same, and
        all must call this.

        Images are rounded to 8 bits before they are measured, as they would be when saved.

        Returns:
            `float`: the PSNR.
        """
        with averaged_weights(autoencoder, ema) as averaged:
            reconstructions, latents = self._reconstruct(averaged, accelerator.device)
            pictured = to_signed(self.images[self._pictured()], accelerator.device)
            maps = feature_maps(averaged, pictured, latents[self._pictured()])
            decoded = None if self.generated is None else self._decode(averaged, self.generated, accelerator.device)
        figures = {"heldout/psnr": float(psnr(reconstructions, self.images).mean()), **latent_figures(latents)}
        if min(self.images.shape[-2:]) >= 11:
            figures["heldout/ssim"] = float(ssim(reconstructions, self.images).mean())
        if self.network is not None and self.reference is not None:
            name = metric_name("FID", self.network.name, len(self.images), prefix="r")
            measured = self._statistics(self.network, reconstructions)
            figures[f"heldout/{name}"] = frechet_distance(measured, self.reference)
            if decoded is not None:
                name = metric_name("FID", self.network.name, min(len(decoded), len(self.images)), prefix="g")
                measured = self._statistics(self.network, decoded)
                figures[f"heldout/{name}"] = frechet_distance(measured, self.reference)
        accelerator.log(figures, step=step)
        if accelerator.is_main_process:
            chosen = self.images[self._pictured()]
            over = [chosen, reconstructions[self._pictured()]]
            self._log_picture(accelerator, "original over reconstruction", over, step)
            components = [component_colours(each, (chosen.shape[-2], chosen.shape[-1])) for each in maps.values()]
            self._log_picture(accelerator, " over ".join(["original", *maps]), [chosen, *components], step)
            if decoded is not None:
                self._log_picture(accelerator, "generated", [decoded[: self.num_pictured]], step)
        logger.info(
            f"step {step}: "
            + ", ".join(f"{name.split('/')[-1]} {value:.4g}" for name, value in figures.items())
            + f" over {len(self.images)} held-out images"
        )
        return figures["heldout/psnr"]

    def _reconstruct(self, autoencoder: ModelMixin, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        batches = self.images.split(self.batch_size)
        latents = torch.cat([adapt(autoencoder).encode(to_signed(images, device)).cpu() for images in batches])
        return self._decode(autoencoder, latents, device), latents.float()

    def _decode(self, autoencoder: ModelMixin, latents: torch.Tensor, device: torch.device) -> torch.Tensor:
        batches = latents.split(self.batch_size)
        return torch.cat([from_signed(adapt(autoencoder).decode(latent.to(device))).cpu() for latent in batches])

    def _pictured(self) -> np.ndarray:
        return np.linspace(0, len(self.images) - 1, min(self.num_pictured, len(self.images))).round().astype(int)

    def _statistics(self, network: FeatureNetwork, images: torch.Tensor) -> FrechetStatistics:
        features = [network(batch)["features"] for batch in images.split(self.batch_size)]
        return FrechetStatistics.from_features(torch.cat(features).numpy())

    def _log_picture(self, accelerator: Accelerator, name: str, rows: list[torch.Tensor], step: int) -> None:
        grid = make_grid(torch.cat(rows), nrow=len(rows[0]), padding=2, pad_value=255)
        log_picture(accelerator, f"heldout/{name}", grid, step)
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / f"step-{step:08d} {name}.png".replace(" ", "-")
        Image.fromarray(grid.permute(1, 2, 0).numpy()).save(file)


def build_preview(
    arguments: ReconstructionArguments, generated: torch.Tensor | None = None
) -> ReconstructionPreview | None:
    """The look at held-out images, if there are any, and generated latents; pictures go to `OUTPUT_DIR/pictures`."""
    if arguments.heldout_data is None:
        return None
    if _is_the_same(arguments.heldout_data, arguments.train_data):
        logger.warning(
            f"--heldout_data {arguments.heldout_data} is what is trained on, so its figures say nothing of new images"
        )
    source = build_image_source(arguments.heldout_data, resolution=arguments.data_resolution)
    count = min(arguments.heldout_images, len(source))
    chosen = np.linspace(0, len(source) - 1, count).round().astype(int)
    images = [to_uint8(center_crop(source.image(int(index)), arguments.image_size)) for index in chosen]
    folder = Path(arguments.output_dir) / "pictures"
    return ReconstructionPreview(torch.stack(images), folder, arguments.heldout_rfd, generated)


def _is_the_same(spec: str, other: str) -> bool:
    """Whether two texts name one data source, as far as can be told without reading it."""
    return spec == other or (os.path.exists(spec) and os.path.exists(other) and os.path.samefile(spec, other))


def latent_figures(latents: torch.Tensor) -> dict[str, float]:
    """Whether latents `(N, c, h, w)` collapse: `latent/effective_rank`, of 1 to c, and `heldout/min_channel_std`."""
    covariance = np.atleast_2d(np.cov(latents.transpose(0, 1).flatten(1).double().numpy()))
    return {
        "latent/effective_rank": spectrum_figures(covariance)["effective_rank"],
        "heldout/min_channel_std": float(np.sqrt(np.diag(covariance).min())),
    }
