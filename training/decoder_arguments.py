"""Options of finetune_decoder."""

from dataclasses import MISSING, dataclass
from typing import ClassVar, Literal

from tcae_diffusers.arguments import option
from tcae_diffusers.trainer.tokenizer_arguments import AdversarialArguments


@dataclass
class DecoderArguments(AdversarialArguments):
    """Fine-tune the decoder of a trained tokenizer, or train a new one of another shape for the same latents."""

    group: ClassVar[str] = "Decoder"

    autoencoder: str = option(
        MISSING, "Folder of the trained autoencoder whose decoder is fine-tuned.", metavar="FOLDER"
    )
    new_decoder: dict = option(
        {},
        "Shape of a new decoder that is trained from scratch, as values that replace entries of the autoencoder's "
        'config, in JSON: {"decoder_hidden_size": 384, "decoder_num_layers": [2, 4]}. If unset, the decoder of '
        "--autoencoder is fine-tuned.",
    )
    latent_noise: float = option(
        0.0,
        "Standard deviation of the noise added to the latents, so that imperfect samples decode well: each image "
        "draws its own from |N(0, x^2)| (RAE: 0.8). Calibrate the autoencoder first, with cache_latents, so that 1 "
        "is the latents' own standard deviation.",
    )
    perceptual: Literal["none", "lpips-vgg", "lpips-alex", "lpips-squeeze", "efficientnet-lite0"] = option(
        "lpips-vgg",
        "Perceptual loss. LPIPS needs torchvision's ImageNet weights; efficientnet-lite0 works offline and is not"
        " LPIPS.",
    )
