"""What every script that trains a tokenizer to reconstruct is told: data, pixel and perceptual loss, previews."""

from dataclasses import dataclass
from typing import Literal

from ..arguments import option
from .arguments import RunArguments


@dataclass
class ReconstructionArguments(RunArguments):
    """What joint training and decoder fine-tuning share."""

    train_data: str = option(
        "openmoji:train",
        "openmoji:train, a folder root/class/img.png, datasets:NAME[:SPLIT], webdataset:FILES (tar shards), or what is"
        " read as it comes: stream:NAME[:SPLIT], stream:webdataset:FILES.",
    )
    heldout_data: str | None = option(None, "Images for held-out PSNR and pictures, never trained on; same forms.")
    data_resolution: int | None = option(None, "Size at which vector images are drawn; twice the resolution if unset.")
    resolution: int | None = option(None, "Side of the reconstructed images; the model's sample_size if unset.")
    horizontal_flip: bool = option(True, "Reconstruct randomly mirrored images.")
    max_broken_images: int = option(100, "Stop after this many images that cannot be decoded; each is named.")

    pixel_loss: Literal["l1", "charbonnier", "mse"] = option("l1", "Distance of pixels inside L_rec.")
    pixel_weight: float = option(1.0, "Its weight.")
    mse_weight: float = option(0.0, "Weight of a squared error beside it; helps short runs to start.")
    perceptual: Literal["none", "lpips-vgg", "lpips-alex", "lpips-squeeze", "efficientnet-lite0"] = option(
        "none",
        "Perceptual term of L_rec. LPIPS needs torchvision's ImageNet weights (downloaded, cached, or by"
        " --perceptual_weights_path); efficientnet-lite0 works offline and is not LPIPS.",
    )
    perceptual_weight: float = option(1.0, "lambda_p of the paper: weight of the perceptual term.")
    perceptual_weights_path: str | None = option(None, "File with the weights of the perceptual network.")

    gradient_checkpointing: bool = option(False, "Recompute activations in the backward pass: less memory, more time.")
    compile: bool = option(False, "torch.compile the repeated blocks; pays off on GPUs.")

    eval_steps: int = option(500, "Steps between two looks at held-out images.")
    num_eval_images: int = option(256, "Held-out images for PSNR and SSIM.")
    heldout_rfd: str | None = option(
        None, "Feature network of a Fréchet distance beside them, such as efficientnet-lite0 (offline); none if unset."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("eval_steps", "num_eval_images"):
            self._require(name, getattr(self, name) >= 1, "at least 1")
        for name in ("resolution", "data_resolution"):
            value = getattr(self, name)
            self._require(name, value is None or value >= 1, "at least 1 pixel")
        self._require("max_broken_images", self.max_broken_images >= 0, "0 or more")
