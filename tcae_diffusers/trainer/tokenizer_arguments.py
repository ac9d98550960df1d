"""Options of what trains a tokenizer, or a part of one, to reconstruct images."""

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from ..arguments import Arguments, option
from ..data.images.image_size_arguments import ImageSizeArguments
from ..models.efficientnet_lite_variants import EfficientNetLiteName
from .arguments import RunArguments

PerceptualName = Literal["none", "lpips-vgg", "lpips-alex", "lpips-squeeze", EfficientNetLiteName]
PERCEPTUAL_HELP = (
    "Perceptual loss. LPIPS needs torchvision's ImageNet weights; the features of an EfficientNet-Lite work offline"
    " and are not LPIPS. Measure with another network than the loss looks through, such as efficientnet-lite0 after"
    " efficientnet-lite1: a distance in the loss's own features falls whether or not images improve."
)
DiscriminatorName = Literal["patchgan", EfficientNetLiteName, "dino", "none"]


@dataclass
class DataArguments(ImageSizeArguments):
    """Images to train on."""

    group: ClassVar[str] = "Data"

    train_data: str = option(
        "openmoji:train",
        "Training images: openmoji:SPLIT, a folder of images (with class folders or without), datasets:NAME[:SPLIT] "
        "or webdataset:FILES (tar shards); stream:NAME[:SPLIT] and stream:webdataset:FILES are read as they arrive.",
        metavar="SOURCE",
    )
    horizontal_flip: bool = option(True, "Mirror half of the training images at random.")
    max_broken_images: int = option(
        100, "Stop the run when more images than this cannot be decoded; each is reported in the log.", at_least=0
    )


@dataclass
class ReconstructionLossArguments(Arguments):
    """The reconstruction loss L_rec."""

    group: ClassVar[str] = "Reconstruction loss"

    pixel_loss: Literal["l1", "charbonnier", "mse"] = option("l1", "Pixel loss.")
    pixel_weight: float = option(1.0, "Weight of the pixel loss.", at_least=0)
    mse_weight: float = option(
        0.0, "Weight of a mean squared error added to the pixel loss, which helps short runs.", at_least=0
    )
    perceptual: PerceptualName = option("none", PERCEPTUAL_HELP)
    perceptual_weight: float = option(
        1.0, "Weight of the perceptual loss, lambda_p in the paper.", needs="perceptual", at_least=0
    )
    perceptual_weights_path: str | None = option(
        None,
        "File with the weights of the perceptual network; downloaded or from torch's cache if unset.",
        metavar="FILE",
        needs="perceptual",
    )

    @property
    def perceptual_min_resolution(self) -> int:
        """Pixels along a side that the perceptual loss needs: LPIPS halves images five times."""
        return 32 if self.perceptual.startswith("lpips") else 1


@dataclass
class HeldoutArguments(Arguments):
    """Images that are never trained on."""

    group: ClassVar[str] = "Held-out images"
    switch: ClassVar[str] = "heldout_data"

    heldout_data: str | None = option(
        None,
        "Held-out images, never trained on, for figures and pictures; accepts the sources of --train_data but "
        "streams. If unset, nothing is held out.",
        metavar="SOURCE",
    )
    heldout_steps: int = option(500, "Steps between two evaluations on held-out images.", at_least=1)
    heldout_images: int = option(256, "Number of held-out images for PSNR and SSIM.", at_least=1)
    heldout_rfd: str | None = option(
        None,
        "Feature network of a Fréchet distance on held-out images, such as efficientnet-lite0, which works offline;"
        " no distance if unset.",
        metavar="NETWORK",
    )


@dataclass
class ReconstructionArguments(RunArguments, DataArguments, ReconstructionLossArguments, HeldoutArguments):
    """What joint training and decoder fine-tuning share."""


@dataclass
class AdversarialArguments(ReconstructionArguments):
    """The adversarial loss, and the discriminator that gives it."""

    group: ClassVar[str] = "Adversarial loss"
    switch: ClassVar[str] = "discriminator"

    discriminator: DiscriminatorName = option(
        "patchgan",
        "Discriminator: a PatchGAN, or heads on the frozen features of a network; none trains without adversarial"
        " loss.",
    )
    discriminator_weights_path: str | None = option(
        None,
        "Weights of the discriminator's frozen network: a file, or for dino a folder or name; the network's default "
        "weights if unset.",
        metavar="PATH",
        needs=("discriminator", *get_args(EfficientNetLiteName), "dino"),
    )
    discriminator_layers: int = option(
        3,
        "Layers of stride 2 in a PatchGAN; images below 24 pixels need fewer than 3.",
        needs=("discriminator", "patchgan"),
        at_least=1,
    )
    discriminator_channels: int = option(
        64, "Channels of a PatchGAN's first layer.", needs=("discriminator", "patchgan"), at_least=1
    )
    discriminator_learning_rate: float = option(2e-4, "Peak learning rate of the discriminator.", above=0)
    discriminator_beta1: float = option(
        0.5, "Decay rate of the first moment of the discriminator's AdamW (VQGAN: 0.5).", at_least=0, below=1
    )
    discriminator_beta2: float = option(
        0.9, "Decay rate of the second moment of the discriminator's AdamW (VQGAN: 0.9).", at_least=0, below=1
    )
    discriminator_weight_decay: float = option(0.0, "Weight decay of the discriminator's AdamW.", at_least=0)
    discriminator_ema_decay: float = option(
        0.999,
        "Decay of the discriminator's averaged weights, which are saved in OUTPUT_DIR/discriminator.",
        at_least=0,
        below=1,
    )
    discriminator_start_step: int | None = option(
        None, "Step at which the discriminator starts to train; --adversarial_start_step if unset.", at_least=0
    )
    discriminator_diff_augment: list[Literal["color", "translation", "cutout"]] = option(
        [], "DiffAugment of the discriminator's inputs, any number of them."
    )
    discriminator_r1_weight: float = option(0.0, "Weight of the discriminator's R1 gradient penalty.", at_least=0)
    discriminator_r1_interval: int = option(
        16, "Steps from one R1 penalty to the next.", needs="discriminator_r1_weight", at_least=1
    )
    discriminator_lecam_weight: float = option(
        0.0, "Weight of the discriminator's LeCam regularisation, for small data sets.", at_least=0
    )
    adversarial_loss: Literal["hinge", "non_saturating"] = option("hinge", "Form of the adversarial loss.")
    adversarial_weight: float = option(
        0.75, "Weight of the adversarial loss, lambda_q in the paper (RAE: 0.75); 0 trains without it.", at_least=0
    )
    adversarial_start_step: int = option(
        0, "Step at which the adversarial loss starts to train the decoder.", at_least=0
    )
    adversarial_adaptive_weight: bool = option(
        True, "Balance the gradients of the adversarial and the reconstruction loss (VQGAN)."
    )
    adversarial_max_adaptive_weight: float = option(
        1e4,
        "Largest factor by which --adversarial_adaptive_weight multiplies the adversarial loss.",
        needs="adversarial_adaptive_weight",
        above=0,
    )

    @property
    def has_discriminator(self) -> bool:
        return self.discriminator != "none" and self.adversarial_weight != 0

    @property
    def discriminator_min_resolution(self) -> int:
        """Pixels along a side that the discriminator needs: three positions are left behind a PatchGAN's strides."""
        return 3 * 2**self.discriminator_layers if self.has_discriminator and self.discriminator == "patchgan" else 1
