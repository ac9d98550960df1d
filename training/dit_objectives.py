"""What train_dit learns: the objective and alignment of its arguments, their losses, and the randomness of steps."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from tcae_diffusers.data.latents.cache import LatentCache
from tcae_diffusers.data.sample_randomness import step_seed
from tcae_diffusers.errors import InputError
from tcae_diffusers.objectives.flow_matching import FlowMatchingObjective, resolution_shift
from tcae_diffusers.objectives.noise_prediction import NoisePredictionObjective
from tcae_diffusers.objectives.representation_alignment import RepresentationAlignment
from tcae_diffusers.training.dit_arguments import DiTArguments
from tcae_diffusers.training.dit_transformers import drop_labels

Objective = FlowMatchingObjective | NoisePredictionObjective


def build_objective(arguments: DiTArguments, latent_shapes: Sequence[tuple[int, int, int]]) -> Objective:
    """
    Raises:
        InputError: a shift that follows from the size of the latents, which are of several.
    """
    if arguments.objective != "flow_matching":
        return NoisePredictionObjective(arguments.objective, arguments.min_snr_gamma)
    shift = arguments.timestep_shift
    if arguments.timestep_shift_base is not None:
        values = sorted(set(map(math.prod, latent_shapes)))
        if len(values) > 1:
            raise InputError(
                f"--timestep_shift_base {arguments.timestep_shift_base} takes the shift from the size of the latents,"
                f" and these have from {values[0]} to {values[-1]} values; pass --timestep_shift instead."
            )
        shift *= resolution_shift(latent_shapes[0], arguments.timestep_shift_base)
    return FlowMatchingObjective(
        arguments.timestep_distribution, shift, arguments.direction_weight, arguments.flow_prediction
    )


def build_alignment(
    arguments: DiTArguments, num_layers: int, latent_shapes: Sequence[tuple[int, int, int]]
) -> RepresentationAlignment | None:
    """
    Raises:
        InputError: the transformer has a single token, which normalisation over tokens would make nothing of.
    """
    if not arguments.repa_weight:
        return None
    single = [shape for shape in latent_shapes if shape[1:] == (arguments.patch_size,) * 2]
    if arguments.repa_spatial_normalization is not None and single:
        raise InputError(
            f"--repa_spatial_normalization {arguments.repa_spatial_normalization:g} needs several tokens, and latents "
            f"{single[0]} in patches of {arguments.patch_size} are one; omit it."
        )
    return RepresentationAlignment(
        arguments.repa_weight,
        # REPA's 8 of the 28 blocks of its largest transformer.
        arguments.repa_layer or max(1, round(num_layers * 2 / 7)),
        arguments.repa_projector,
        arguments.repa_projector_width,
        arguments.repa_spatial_normalization,
    )


def alignment_in_words(alignment: RepresentationAlignment | None, cache: LatentCache) -> str:
    """Behind the words about the objective; empty without alignment."""
    if alignment is None:
        return ""
    words = f" + {alignment.weight:g} * alignment of block {alignment.layer} ({alignment.projector}) with tokens of"
    words += f" {cache.manifest['tokens']['network']}"
    if alignment.spatial_normalization is not None:
        words += f", less {alignment.spatial_normalization:g} of their mean"
    return words


def objective_in_words(arguments: DiTArguments, objective: Objective) -> str:
    """For the log and the folder of a run."""
    losses = {
        "flow_matching": f"flow matching, {arguments.timestep_distribution} noise levels",
        "epsilon": "noise prediction",
        "v_prediction": "v prediction",
    }[arguments.objective]
    if arguments.flow_prediction == "sample":
        losses += ", velocity of the predicted sample"
    if isinstance(objective, FlowMatchingObjective) and objective.shift != 1.0:
        losses += f" shifted by {objective.shift:.3g}"
    if arguments.direction_weight:
        losses += f", + {arguments.direction_weight:g} * direction"
    if arguments.min_snr_gamma is not None:
        losses += f", min-SNR {arguments.min_snr_gamma:g}"
    return losses


def draw_step_randomness(
    seed: int,
    step: int,
    total_batch: int,
    latent_shape: Sequence[int],
    objective: Objective,
    label_dropout: float,
    device: torch.device,
) -> dict[str, torch.Tensor]:
    """
    Noise, noise levels and label drops of a whole optimizer step, a function of (seed, step) alone. Each rank and
    forward pass takes its slots, so the result does not depend on how a step is divided.
    """
    generator = torch.Generator(device).manual_seed(step_seed(seed, step))
    return {
        "noise": torch.randn((total_batch, *latent_shape), generator=generator, device=device),
        "levels": objective.draw_levels(total_batch, generator, device),
        "drop": torch.rand(total_batch, generator=generator, device=device) < label_dropout,
    }


def compute_losses(
    model: torch.nn.Module,
    objective: Objective,
    latents: torch.Tensor,
    labels: torch.Tensor,
    null_class_id: int,
    randomness: dict[str, torch.Tensor],
    alignment: RepresentationAlignment | None = None,
    tokens: torch.Tensor | None = None,
) -> dict[str, torch.Tensor]:
    """Scalars, the `loss` to minimise among them. With `alignment`, `model` returns projected tokens too."""
    labels = drop_labels(labels, randomness["drop"], null_class_id)
    projected: list[torch.Tensor] = []

    def predict(noisy: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        prediction, *others = model(noisy, timestep=timestep, class_labels=labels, return_dict=False)
        projected.extend(others)
        return prediction

    losses = objective.losses(predict, latents, randomness["noise"], randomness["levels"])
    if alignment is None or tokens is None:
        return losses
    aligned = alignment.loss(projected[0], tokens)
    return {
        **losses,
        "loss": losses["loss"] + alignment.weight * aligned,
        "diffusion_loss": losses["loss"],
        "alignment_loss": aligned,
    }
