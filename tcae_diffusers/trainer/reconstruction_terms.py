"""The reconstruction loss that the arguments describe."""

from ..objectives.perceptual import build_perceptual_loss
from ..objectives.reconstruction import ReconstructionLoss
from .tokenizer_arguments import ReconstructionArguments


def build_reconstruction_loss(arguments: ReconstructionArguments) -> ReconstructionLoss:
    """
    Raises:
        ValueError, FileNotFoundError, ImportError: weights of the perceptual network that cannot be had or used.
    """
    needed = arguments.perceptual_min_resolution
    if arguments.image_size < needed:
        raise ValueError(
            f"--perceptual {arguments.perceptual} needs images of at least {needed}x{needed}, --resolution is"
            f" {arguments.resolution}; use efficientnet-lite0, which enlarges them, or none."
        )
    return ReconstructionLoss(
        arguments.pixel_loss,
        arguments.pixel_weight,
        arguments.mse_weight,
        build_perceptual_loss(arguments.perceptual, arguments.perceptual_weights_path),
        arguments.perceptual_weight,
    )
