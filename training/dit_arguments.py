"""Options of train_dit."""

from dataclasses import MISSING, dataclass
from typing import ClassVar, Literal

from tcae_diffusers.arguments import Arguments, option
from tcae_diffusers.trainer.arguments import EMAArguments, RunArguments


@dataclass
class LatentArguments(Arguments):
    """What is trained on."""

    group: ClassVar[str] = "Latents"

    latents: str = option(MISSING, "Folder written by cache_latents.", metavar="FOLDER")
    tokenizer: str = option(
        MISSING,
        "Folder of the autoencoder that encoded the latents; it becomes part of the pipeline.",
        metavar="FOLDER",
    )


@dataclass
class LabelArguments(Arguments):
    """Class conditioning."""

    group: ClassVar[str] = "Class labels"

    unconditional: bool = option(False, "Train without labels, with all images in one class.")
    label_dropout: float = option(
        0.1,
        "Fraction of the samples trained without their label, for classifier-free guidance.",
        metavar="FRACTION",
        at_least=0,
        below=1,
    )
    null_class_id: int | None = option(
        None,
        "Class id that stands for no label; if unset, 1000 for epsilon and v_prediction, as diffusers' DiTPipeline "
        "requires, and the number of classes for flow_matching.",
        metavar="ID",
        at_least=0,
    )


@dataclass
class TransformerArguments(Arguments):
    """The model."""

    group: ClassVar[str] = "Transformer"

    transformer: Literal["dit", "tc-dit", "tc-dit-s", "tc-dit-b", "tc-dit-l", "tc-dit-xl"] = option(
        "dit",
        "Transformer: diffusers' DiTTransformer2DModel or TC-DiT, with the dimensions of the options below, or a "
        "TC-DiT of a named size.",
    )
    num_layers: int | None = option(
        None, "Transformer blocks; if unset, those of the named size, or 28 as in DiT-XL.", at_least=1
    )
    num_attention_heads: int | None = option(
        None, "Attention heads per block; if unset, those of the named size, or 16 as in DiT-XL.", at_least=1
    )
    attention_head_dim: int | None = option(
        None, "Channels per attention head; if unset, those of the named size, or 72 as in DiT-XL.", at_least=1
    )
    patch_size: int = option(
        1, "Side of a token in latent positions; 1 suits deeply compressed latents (LightningDiT: 1).", at_least=1
    )
    transformer_weights: str | None = option(
        None,
        "Folder of a trained transformer, or of a pipeline with one, that training starts from, for example to adapt "
        "it to larger images; the options of the transformer must be those it was trained with. Random weights if "
        "unset.",
        metavar="FOLDER",
    )


# Options that flow matching alone reads.
_FLOW = ("objective", "flow_matching")


@dataclass
class ObjectiveArguments(Arguments):
    """What is learned."""

    group: ClassVar[str] = "Objective"

    objective: Literal["flow_matching", "epsilon", "v_prediction"] = option(
        "flow_matching",
        "What the transformer learns; with epsilon and v_prediction it runs in diffusers' own DiTPipeline.",
    )
    flow_prediction: Literal["velocity", "sample"] = option(
        "velocity",
        "What the transformer predicts in flow matching: the velocity, or the clean latent, which is turned into a "
        "velocity for the loss and for sampling.",
        needs=_FLOW,
    )
    timestep_distribution: Literal["lognormal", "uniform"] = option(
        "lognormal", "Distribution from which flow matching draws noise levels.", needs=_FLOW
    )
    timestep_shift: float = option(
        1.0,
        "Shift of flow matching's noise levels; above 1 moves them towards noise, as large latents need.",
        above=0,
        needs=_FLOW,
    )
    timestep_shift_base: int | None = option(
        None,
        "Multiply --timestep_shift by the square root of a latent's number of values over this (RAE: 4096); no factor"
        " if unset.",
        above=0,
        needs=_FLOW,
    )
    direction_weight: float = option(
        0.0,
        "Weight of the cosine loss between predicted and true velocity in flow matching (LightningDiT: 1).",
        at_least=0,
        needs=_FLOW,
    )
    min_snr_gamma: float | None = option(
        None,
        "Gamma of Min-SNR weighting for epsilon and v_prediction (its paper: 5); no weighting if unset.",
        needs=("objective", "epsilon", "v_prediction"),
        above=0,
    )


@dataclass
class AlignmentArguments(Arguments):
    """REPA: an inner layer predicts tokens of the clean image."""

    group: ClassVar[str] = "Representation alignment"

    repa_weight: float = option(
        0.0,
        "Weight of the alignment of an inner layer with the tokens that cache_latents --tokens stored (REPA: 0.5); 0 "
        "turns it off.",
        at_least=0,
    )
    repa_layer: int | None = option(
        None,
        "Transformer block whose output is aligned, counted from 1; if unset, two sevenths of the way through, which "
        "is REPA's 8 of 28.",
        metavar="BLOCK",
        at_least=1,
        needs="repa_weight",
    )
    repa_projector: Literal["mlp", "conv"] = option(
        "mlp",
        "What maps the layer to the tokens: an MLP of three layers as in REPA, or one 3x3 convolution as in iREPA. It "
        "is trained and checkpointed with the transformer, but not saved in the pipeline.",
        needs="repa_weight",
    )
    repa_projector_width: int = option(
        2048, "Hidden width of --repa_projector mlp (REPA: 2048).", at_least=1, needs="repa_weight"
    )
    repa_spatial_normalization: float | None = option(
        None,
        "Share of an image's mean token that is subtracted from each of its tokens before they are divided by their "
        "standard deviation (iREPA: 0.6 to 0.8); tokens are left as they are if unset.",
        metavar="SHARE",
        at_least=0,
        at_most=1,
        needs="repa_weight",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        is_mlp = self.repa_projector == "mlp"
        self._require_default("repa_projector_width", unless=is_mlp, omitted="with --repa_projector conv")


@dataclass
class FurtherEMAArguments(EMAArguments):
    """Weight averages in addition to the pipeline's."""

    extra_ema_decays: list[float] = option(
        [], "Decays of additional weight averages; each is saved in ema/<decay>.", at_least=0, below=1
    )
    posthoc_ema_sigmas: list[float] = option(
        [],
        "Relative lengths of post-hoc averages, such as 0.05 0.1, from which an average of any length can be built"
        " after training.",
        above=0,
    )
    posthoc_ema_steps: int = option(
        1000,
        "Steps between two snapshots of the post-hoc averages in ema_snapshots/.",
        needs="posthoc_ema_sigmas",
        at_least=1,
    )


@dataclass
class SampleArguments(Arguments):
    """Samples and pipelines during training."""

    group: ClassVar[str] = "Samples and pipelines"

    sample_steps: int = option(
        1000, "Steps between two pictures of samples, which are drawn from the same noise each time.", at_least=1
    )
    samples_per_class: int = option(2, "Images per class in the picture of samples.", at_least=1)
    sample_num_inference_steps: int = option(30, "Denoising steps for the picture of samples.", at_least=1)
    sample_guidance_scale: float = option(
        2.0,
        "Guidance scale for the picture of samples; there is no guidance with --label_dropout 0.",
        needs="label_dropout",
        at_least=1,
    )
    pipeline_steps: int = option(
        0,
        "Steps between two pipelines in pipelines/step-<n>, for `evaluation convergence`; 0 saves only the last.",
        at_least=0,
    )


@dataclass
class OnlineFrechetArguments(Arguments):
    """A Fréchet distance during training, to follow the trend."""

    group: ClassVar[str] = "Fréchet distance during training"
    switch: ClassVar[str] = "gfd_steps"

    gfd_steps: int = option(
        0,
        "Steps between two Fréchet distances of a small set of samples, which show only a trend; 0 turns them off.",
        at_least=0,
    )
    gfd_samples: int = option(
        256,
        "Samples for the Fréchet distance, drawn without guidance and labelled in the proportions of the latents.",
        at_least=8,
    )
    gfd_reference: str | None = option(
        None, "Real images for the Fréchet distance: a data source such as openmoji:train.", metavar="SOURCE"
    )
    gfd_extractor: str = option("efficientnet-lite0", "Feature network of the Fréchet distance.", metavar="NETWORK")

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("gfd_reference", not self.gfd_steps or bool(self.gfd_reference), "given with --gfd_steps")


@dataclass
class DiTArguments(
    RunArguments,
    FurtherEMAArguments,
    LatentArguments,
    LabelArguments,
    TransformerArguments,
    ObjectiveArguments,
    AlignmentArguments,
    SampleArguments,
    OnlineFrechetArguments,
):
    """Train a diffusion transformer on cached latents."""
