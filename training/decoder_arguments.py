"""Options of finetune_decoder."""

from dataclasses import MISSING, dataclass
from typing import ClassVar, Literal

from tcae_diffusers.arguments import option
from tcae_diffusers.trainer.tokenizer_arguments import PERCEPTUAL_HELP, AdversarialArguments, PerceptualName


@dataclass
class GeneratedLatentArguments(AdversarialArguments):
    """Generated latents, on which the decoder is judged beside the encoded ones."""

    group: ClassVar[str] = "Held-out images"
    switch: ClassVar[str] = "heldout_pipeline"

    heldout_pipeline: str | None = option(
        None,
        "Pipeline that was trained on the latents of --autoencoder. Its latents, drawn once at the start, are decoded "
        "at each evaluation on held-out images, and their Fréchet distance to those images is logged (gFD).",
        metavar="FOLDER",
    )
    heldout_samples: int = option(
        256,
        "Number of latents to draw from --heldout_pipeline, of all classes equally.",
        metavar="SAMPLES",
        at_least=8,
    )
    heldout_num_inference_steps: int = option(
        50, "Denoising steps of each latent of --heldout_pipeline.", metavar="STEPS", at_least=1
    )
    heldout_guidance_scale: float = option(
        1.0,
        "Scale of classifier-free guidance for the latents of --heldout_pipeline; 1 means no guidance.",
        at_least=1,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("heldout_data", "heldout_rfd"):
            given = bool(getattr(self, name))
            self._require(name, given or self.heldout_pipeline is None, "given with --heldout_pipeline")


@dataclass
class DecoderArguments(GeneratedLatentArguments):
    """Fine-tune the decoder of a trained tokenizer, or train a new one of another shape for the same latents."""

    group: ClassVar[str] = "Decoder"

    autoencoder: str = option(
        MISSING, "Folder of the trained autoencoder whose decoder is fine-tuned.", metavar="FOLDER"
    )
    trained_layers: Literal["decoder", "head"] = option(
        "decoder", "Layers to train: the whole decoder, or its last layers alone (DC-AE's local refinement)."
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
        at_least=0,
    )
    perceptual: PerceptualName = option("lpips-vgg", PERCEPTUAL_HELP)

    def __post_init__(self) -> None:
        super().__post_init__()
        has_new = bool(self.new_decoder)
        self._require_default("trained_layers", unless=not has_new, omitted="with --new_decoder")
