"""Images of single seeds, and between two seeds, with any scheduler that suits the pipeline."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import diffusers
import numpy as np
import torch
from diffusers import SchedulerMixin

from tcae_diffusers.errors import InputError
from tcae_diffusers.pipelines import TCDiTPipeline
from tcae_diffusers.pipelines.pipeline_tc_dit import SHIFTS, shift_argument

from ..arguments.sampling import GuidanceArguments
from ..pictures.drawing import as_uint8
from ..pictures.guiders import guider_of, set_guider

FLOW_SCHEDULERS = (
    "FlowMatchEulerDiscreteScheduler",
    "FlowMatchHeunDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "UniPCMultistepScheduler",
)
DIFFUSION_SCHEDULERS = (
    "DDIMScheduler",
    "DDPMScheduler",
    "DPMSolverMultistepScheduler",
    "EulerDiscreteScheduler",
    "UniPCMultistepScheduler",
)
# Of the guiders that `--guider` takes, those that need no layers, packages or scales besides, and their options.
OFFERED_GUIDERS: dict[str, dict[str, float]] = {
    "ClassifierFreeGuidance": {},
    # Eta as in its paper (arXiv 2410.02416, section 5); with the default of diffusers it is classifier-free guidance.
    "AdaptiveProjectedGuidance": {"eta": 0.0},
    "ClassifierFreeZeroStarGuidance": {},
    "MagnitudeAwareGuidance": {},
    "TangentialClassifierFreeGuidance": {},
}
# What a number field of a browser holds exactly.
LARGEST_SEED = 2**53 - 1


@dataclass(frozen=True)
class Sampling:
    """
    How images are drawn.

    Args:
        scheduler (`str`): One of [`scheduler_names`].
        num_inference_steps (`int`): Denoising steps.
        guider (`str`): One of [`guider_names`].
        guidance_scale (`float`): 1 means no guidance.
        batch_size (`int`): Images that are drawn together.
        on_step (`Callable`): Called with the part that is done, in (0, 1], after each step; what it raises ends the
            drawing.
    """

    scheduler: str
    num_inference_steps: int
    guider: str
    guidance_scale: float
    batch_size: int
    on_step: Callable[[float], None]


def scheduler_names(pipeline: TCDiTPipeline) -> list[str]:
    """Classes of diffusers that suit what the transformer predicts, the pipeline's own first."""
    is_flow = pipeline.config.prediction_type.startswith("flow_")
    names = FLOW_SCHEDULERS if is_flow else DIFFUSION_SCHEDULERS
    return list(dict.fromkeys([type(pipeline.scheduler).__name__, *names]))


def guider_names(pipeline: TCDiTPipeline) -> list[str]:
    """Classes of `diffusers.guiders`: the pipeline's own, then [`OFFERED_GUIDERS`]."""
    own = guider_of(pipeline)
    return list(dict.fromkeys(["ClassifierFreeGuidance" if own is None else type(own).__name__, *OFFERED_GUIDERS]))


def build_scheduler(pipeline: TCDiTPipeline, name: str) -> SchedulerMixin:
    """
    A new scheduler with the noise levels of the pipeline's own.

    Raises:
        InputError: It does not suit the pipeline.
    """
    own = pipeline.scheduler
    if name not in scheduler_names(pipeline):
        raise InputError(f"scheduler {name} must be one of {', '.join(scheduler_names(pipeline))}")
    if name == type(own).__name__:
        return type(own).from_config(own.config)
    kind, key = getattr(diffusers, name), shift_argument(own)
    shift = 1.0 if key is None else own.config[key]
    # The shift that is not the class's own is a leftover of another one.
    config = {key: value for key, value in own.config.items() if key not in SHIFTS}
    if name.startswith("FlowMatch"):
        return kind.from_config(config, shift=shift)
    if not pipeline.config.prediction_type.startswith("flow_"):
        # Latents of unit variance exceed the range to which samples are clipped by default.
        clipping = {"clip_sample": False} if name.startswith("DD") else {}
        # Those that cut a learned variance off leave three channels of the prediction.
        fixed = {"variance_type": None} if "Solver" in name else {}
        return kind.from_config(own.config, prediction_type=pipeline.config.prediction_type, **clipping, **fixed)
    return kind.from_config(config, prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift)


def draw_seeds(pipeline: TCDiTPipeline, labels: Sequence[int], seeds: Sequence[int], sampling: Sampling) -> np.ndarray:
    """
    One image of each label and seed: uint8 `(N, H, W, 3)`. It is what the pipeline draws with
    `generator=torch.Generator().manual_seed(seed)`, whatever is drawn beside it.

    Raises:
        InputError: If the pipeline does not take this sampling, or draws NaN or infinity.
    """
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return _draw(pipeline, labels, generators, None, sampling)


def draw_between(
    pipeline: TCDiTPipeline, label: int, seeds: tuple[int, int], images: int, sampling: Sampling
) -> np.ndarray:
    """
    Images of one class whose noise goes from that of one seed to that of another, in equal angles: uint8 `(images, H,
    W, 3)`. The first is that of the first seed and, where the scheduler adds no noise of its own, the last that of the
    second.

    Raises:
        InputError: As [`draw_seeds`].
    """
    config = pipeline.transformer.config
    shape = (1, config.in_channels, config.sample_size, config.sample_size)
    first, second = (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds)
    noise = [spherical_interpolation(first, second, part) for part in np.linspace(0, 1, images).tolist()]
    # Each goes on where the first seed's own noise ended, for schedulers that add more.
    generators = [torch.Generator().manual_seed(seeds[0]) for _ in noise]
    for generator in generators:
        torch.randn(shape, generator=generator)
    return _draw(pipeline, [label] * images, generators, torch.cat(noise), sampling)


def spherical_interpolation(first: torch.Tensor, second: torch.Tensor, part: float) -> torch.Tensor:
    """From `first` (0) to `second` (1) on the arc between them: noise keeps the length of noise (Shoemake 1985)."""
    cosine = torch.nn.functional.cosine_similarity(first.flatten(), second.flatten(), dim=0).clamp(-1, 1)
    angle = torch.arccos(cosine.double()).item()
    if np.sin(angle) < 1e-6:
        return (1 - part) * first + part * second
    return (np.sin((1 - part) * angle) * first + np.sin(part * angle) * second) / np.sin(angle)


def _draw(
    pipeline: TCDiTPipeline,
    labels: Sequence[int],
    generators: list[torch.Generator],
    noise: torch.Tensor | None,
    sampling: Sampling,
) -> np.ndarray:
    drawn = []
    for start in range(0, len(labels), sampling.batch_size):
        chosen = slice(start, start + sampling.batch_size)

        def on_step(pipe: TCDiTPipeline, step: int, timestep: torch.Tensor, tensors: dict, start: int = start) -> dict:
            images = len(range(len(labels))[start : start + sampling.batch_size])
            sampling.on_step((start + images * (step + 1) / pipe.num_timesteps) / len(labels))
            return {}

        own = _pipeline_of_call(pipeline, sampling)
        latents = own(
            class_labels=list(labels[chosen]),
            num_inference_steps=sampling.num_inference_steps,
            guidance_scale=sampling.guidance_scale,
            generator=generators[chosen],
            latents=None if noise is None else noise[chosen],
            output_type="latent",
            callback_on_step_end=on_step,
            return_dict=False,
        )[0]
        drawn.append(as_uint8(own.decode_latents(latents, "np", generator=generators[chosen])))
    return np.concatenate(drawn)


def _pipeline_of_call(pipeline: TCDiTPipeline, sampling: Sampling) -> TCDiTPipeline:
    """A pipeline around the same models, so that what it notes of one call is in no other's way."""
    guiders = guider_names(pipeline)
    if sampling.guider not in guiders:
        raise InputError(f"guider {sampling.guider} must be one of {', '.join(guiders)}")
    own = TCDiTPipeline(
        **{**pipeline.components, "scheduler": build_scheduler(pipeline, sampling.scheduler)},
        id2label=pipeline.id2label,
        prediction_type=pipeline.config.prediction_type,
        has_null_class=pipeline.config.has_null_class,
    )
    if sampling.guider != guiders[0] and sampling.guidance_scale > 1:
        set_guider(own, GuidanceArguments(guider=sampling.guider, guider_options=OFFERED_GUIDERS[sampling.guider]))
    own.set_progress_bar_config(disable=True)
    return own
