"""Arguments of train_dit."""

from dataclasses import dataclass
from typing import Literal

from tcae_diffusers.arguments import option
from tcae_diffusers.trainer import RunArguments
from tcae_diffusers.trainer.posthoc_ema import exponent_of


@dataclass
class DiTArguments(RunArguments):
    """Train a diffusion transformer on cached latents."""

    latents: str = option("", "Folder written by cache_latents.")
    tokenizer: str = option("", "Folder of the autoencoder that wrote them; it becomes part of the pipeline.")
    transformer: Literal["dit", "tc-dit", "tc-dit-s", "tc-dit-b", "tc-dit-l", "tc-dit-xl"] = option(
        "dit", "diffusers' DiTTransformer2DModel, or our modern one, of a given size or of the sizes below."
    )
    num_layers: int | None = option(None, "Transformer blocks; the preset's, else 28 as DiT-XL, if unset.")
    num_attention_heads: int | None = option(None, "Attention heads; the preset's, else 16, if unset.")
    attention_head_dim: int | None = option(None, "Channels per head; the preset's, else 72, if unset.")
    patch_size: int = option(1, "Latent positions per token side; 1 for deep-compression latents (LightningDiT).")
    gradient_checkpointing: bool = option(False, "Compute activations twice instead of keeping them.")
    compile: bool = option(False, "torch.compile the blocks: 1.2 to 1.6 times faster, after minutes of compiling.")
    unconditional: bool = option(False, "Ignore the labels: one class that holds all images.")
    label_dropout: float = option(0.1, "Share of samples trained without their label, for classifier-free guidance.")
    null_class_id: int | None = option(
        None, "Class id of 'no label'. Unset: 1000 for epsilon and v, as stock DiTPipeline asks; else class count."
    )
    objective: Literal["flow_matching", "epsilon", "v_prediction"] = option(
        "flow_matching", "What is learned. epsilon and v_prediction run in diffusers' stock DiTPipeline."
    )
    timestep_distribution: Literal["lognormal", "uniform"] = option(
        "lognormal", "How flow matching draws noise levels."
    )
    timestep_shift: float = option(1.0, "Above 1 moves noise levels towards noise, for larger latents.")
    timestep_shift_base: int | None = option(
        None, "Shift further by sqrt(values of a latent / this number); 4096 is RAE's."
    )
    direction_weight: float = option(0.0, "Weight of the cosine loss between velocities (LightningDiT uses 1).")
    min_snr_gamma: float | None = option(None, "Min-SNR weighting of epsilon and v prediction (the paper's is 5).")
    extra_ema_decays: list[float] = option([], "Further averages of the weights; each is saved to ema/<decay>.")
    posthoc_ema_sigmas: list[float] = option(
        [], "Keep power-function averages of these lengths (0.05 0.1), to choose a length after training."
    )
    posthoc_ema_steps: int = option(1000, "Steps between two snapshots of those in ema_snapshots/.")
    weight_decay: float = option(0.0, "Weight decay of AdamW.")
    sample_steps: int = option(1000, "Steps between two pictures of samples, drawn from the same noise each time.")
    samples_per_class: int = option(2, "Images per class in that picture.")
    num_inference_steps: int = option(30, "Denoising steps for that picture.")
    guidance_scale: float = option(2.0, "Guidance scale for that picture.")
    pipeline_steps: int = option(
        0, "Steps between two pipelines saved in pipelines/step-<n>, for `evaluation convergence`; 0: only the last."
    )
    gfd_steps: int = option(0, "Steps between two Fréchet distances of a small sample, a trend only; 0: none.")
    gfd_samples: int = option(
        256, "Images of that sample, drawn without guidance, labelled in the proportions of the latents."
    )
    gfd_reference: str | None = option(None, "Its reference: a data source such as openmoji:train.")
    gfd_extractor: str = option("efficientnet-lite0", "Its feature network.")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("latents", "tokenizer"):
            self._require(name, bool(getattr(self, name)), "a folder")
        self._require("label_dropout", 0 <= self.label_dropout < 1, "at least 0 and below 1")
        for name in ("sample_steps", "samples_per_class", "num_inference_steps", "patch_size"):
            self._require(name, getattr(self, name) >= 1, "at least 1")
        self._require("timestep_shift", self.timestep_shift > 0, "positive")
        self._require("timestep_shift_base", (self.timestep_shift_base or 1) > 0, "positive")
        self._require("direction_weight", self.direction_weight >= 0, "0 or more")
        self._require("extra_ema_decays", all(0 <= decay < 1 for decay in self.extra_ema_decays), "below 1 each")
        self._require("posthoc_ema_steps", self.posthoc_ema_steps >= 1, "at least 1")
        for sigma_rel in self.posthoc_ema_sigmas:
            exponent_of(sigma_rel)
        for name in ("gfd_steps", "pipeline_steps"):
            self._require(name, getattr(self, name) >= 0, "0 or more")
        self._require("gfd_samples", self.gfd_samples >= 8, "at least 8")
        self._require("gfd_reference", not self.gfd_steps or bool(self.gfd_reference), "given with --gfd_steps")
        flow_only = {"timestep_distribution": "lognormal", "timestep_shift": 1.0, "timestep_shift_base": None}
        is_flow = self.objective == "flow_matching"
        for name, default in {**flow_only, "direction_weight": 0.0}.items():
            self._require(name, is_flow or getattr(self, name) == default, "left out unless --objective flow_matching")
        self._require("min_snr_gamma", not is_flow or self.min_snr_gamma is None, "left out with flow_matching")
