"""Guidance of class-conditional generation by the guiders of diffusers: which guider a call has, where it guides, and
that it can do what it promises with the transformer at hand."""

import contextlib
import copy
import logging as standard_logging
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from diffusers.guiders import AutoGuidance, BaseGuidance, ClassifierFreeGuidance, MagnitudeAwareGuidance
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils.torch_utils import is_compiled_module

DEFAULT_GUIDANCE_SCALE = 4.0
# What diffusers' guiders call the prediction that a plain one is led away from.
UNCONDITIONAL = "pred_uncond"
CONDITIONAL = "pred_cond"


def guider_of_call(
    guider: BaseGuidance | None,
    guidance_scale: float | None,
    guidance_interval: tuple[float, float] | None,
    noise_levels: Sequence[float],
) -> BaseGuidance:
    """
    The guider of one call: a copy of `guider`, with the scale and the interval that the call asks for.

    Args:
        guider ([`~diffusers.guiders.BaseGuidance`], *optional*): By default classifier-free guidance.
        guidance_scale (`float`, *optional*): Instead of the guider's own; 1 or less turns it off.
        guidance_interval (`tuple[float, float]`, *optional*):
            Noise levels that are guided, instead of the guider's `start` and `stop`, which count steps; where it
            weakens layers within a window of their own, that is narrowed.
        noise_levels (`Sequence[float]`): Of each step, from 1 (pure noise) to 0.

    Raises:
        ValueError: if the guider has no single scale, or counts it in another way.
    """
    if guider is None and guidance_scale is None:
        guidance_scale = DEFAULT_GUIDANCE_SCALE
    changes: dict[str, float] = {}
    is_enabled = guider is None or bool(guider.get_state()["enabled"])
    if guidance_scale is not None:
        _require_a_scale(guider, guidance_scale)
        changes["guidance_scale"] = guidance_scale
        is_enabled = is_enabled and guidance_scale > 1
    if guidance_interval is not None:
        inside = steps_within(noise_levels, guidance_interval)
        is_enabled = is_enabled and inside is not None
        if inside is not None:
            changes |= dict(zip(("start", "stop"), fractions_of_steps(inside, len(noise_levels)), strict=True))
            changes |= {} if guider is None else _layers_within(guider, inside, len(noise_levels))
    with without_notice():
        if guider is None:
            changed = ClassifierFreeGuidance(**changes)
        else:
            # What a callback does to it must not outlast the call.
            changed = guider.new(**changes) if changes else copy.copy(guider)
    if not is_enabled:
        changed.disable()
    return changed


def _require_a_scale(guider: BaseGuidance | None, guidance_scale: float) -> None:
    if guider is None:
        return
    name = type(guider).__name__
    if "guidance_scale" not in guider.config:
        raise ValueError(
            f"guidance_scale={guidance_scale} given, but {name} has no single guidance_scale; omit it and set the "
            f"scales of the guider itself, as in {name}(...)."
        )
    if guider.config.get("use_original_formulation"):
        raise ValueError(
            f"guidance_scale={guidance_scale} given, where 1 means no guidance, but {name} has "
            "use_original_formulation=True, where 0 does; omit it and set the scale of the guider itself."
        )


def steps_within(noise_levels: Sequence[float], guidance_interval: tuple[float, float]) -> tuple[int, int] | None:
    """First and last of the steps at noise levels within `guidance_interval`; `None` if there are none."""
    low, high = guidance_interval
    inside = [step for step, level in enumerate(noise_levels) if low <= level <= high]
    return (inside[0], inside[-1]) if inside else None


def fractions_of_steps(steps: tuple[int, int], count: int) -> tuple[float, float]:
    """`start` and `stop` with which a guider guides exactly the steps from the first to the last of `count`."""
    # A guider rounds its fraction of the steps down; the half keeps that away from the rounding of floats.
    return (steps[0] + 0.5) / count, min((steps[1] + 1.5) / count, 1.0)


def _layers_within(guider: BaseGuidance, steps: tuple[int, int], count: int) -> dict[str, float]:
    """What narrows the window in which a guider weakens layers, if it has one, to the steps from first to last."""
    for prefix in ("skip_layer_guidance", "perturbed_guidance"):
        if f"{prefix}_start" not in guider.config:
            continue
        # It guides the steps between these two, without either.
        own = [int(guider.config[f"{prefix}_{end}"] * count) for end in ("start", "stop")]
        start, stop = max(own[0], steps[0] - 1), min(own[1], steps[1] + 1)
        if stop - start < 2:
            return {f"{prefix}_scale": 0.0}
        narrowed = {"start": (start, own[0]), "stop": (stop, own[1])}
        return {f"{prefix}_{end}": (at + 0.5) / count for end, (at, before) in narrowed.items() if at != before}
    return {}


@contextlib.contextmanager
def without_notice() -> Iterator[None]:
    """Without the notice that guiders are experimental, which every new one logs: for those that nobody asked for."""
    log = standard_logging.getLogger("diffusers.guiders.guider_utils")
    was_disabled, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = was_disabled


def check_guider(
    guider: BaseGuidance, transformer: ModelMixin, guidance_transformer: ModelMixin | None, has_null_class: bool
) -> None:
    """
    Raises:
        ValueError: if the guider needs a null class that there is none of, or weakens the layers of a transformer that
            is compiled or that has a weaker transformer for the same purpose already.
    """
    name = type(guider).__name__
    _mend_layers(guider)
    if weakens_layers(guider) and is_compiled_module(transformer):
        raise ValueError(
            f"{name} weakens single layers of the transformer, which a compiled one does not allow; pass the "
            "transformer as it was before torch.compile."
        )
    if isinstance(guider, AutoGuidance):
        if guidance_transformer is not None:
            raise ValueError(
                "AutoGuidance guides by the transformer with weaker layers, and the pipeline has a "
                "guidance_transformer to guide by as well; drop one of them."
            )
        return
    if UNCONDITIONAL in passes_of(guider) and guidance_transformer is None and not has_null_class:
        raise ValueError(
            f"{name} needs a null class, and this transformer was trained without one; pass guidance_scale=1, or give "
            "the pipeline a guidance_transformer."
        )


def weakens_layers(guider: BaseGuidance) -> bool:
    """Whether the guider changes layers of the transformer for some of its predictions."""
    return type(guider).prepare_models is not BaseGuidance.prepare_models


def _mend_layers(guider: BaseGuidance) -> None:
    # diffusers 0.42 makes a config of `*_layers=[1, 2]` with one number each, where its hooks need a list of them.
    for name in ("skip_layer_config", "auto_guidance_config", "seg_guidance_config"):
        for config in getattr(guider, name, None) or []:
            if isinstance(config.indices, int):
                config.indices = [config.indices]


def combined(guider: BaseGuidance, batches: list[Any]) -> torch.Tensor:
    """What `guider` makes of the predictions `batch.noise_pred` `(B, C, h, w)` of its passes, of the same shape."""
    shape = batches[0].noise_pred.shape
    if isinstance(guider, MagnitudeAwareGuidance):
        # It takes norms over all but the first dimension, and torch those of no more than two.
        for batch in batches:
            batch.noise_pred = batch.noise_pred.flatten(2)
    return guider(batches).pred.reshape(shape)


def passes_of(guider: BaseGuidance) -> list[str]:
    """What the guider calls the predictions that it combines where it guides."""
    # Without a number of steps, any step is one that is guided.
    guider.set_state(0, None, None)
    return [pass_name(guider, batch) for batch in guider.prepare_inputs({})]


def pass_name(guider: BaseGuidance, batch: Any) -> str:
    return getattr(batch, guider._identifier_key)


@contextlib.contextmanager
def weakened(guider: BaseGuidance, transformer: ModelMixin, name: str) -> Iterator[None]:
    """
    The transformer as the guider wants it for its prediction `name`.

    Raises:
        ValueError: if that should be a weaker one and is not, so that guidance would do nothing, without a word.
    """
    is_weaker = name not in (CONDITIONAL, UNCONDITIONAL) or (isinstance(guider, AutoGuidance) and name != CONDITIONAL)
    before = _count_hooks(transformer)
    if name not in (CONDITIONAL, UNCONDITIONAL):
        # diffusers takes the third pass for the weaker one, also where there is no second.
        guider._count_prepared = max(guider._count_prepared, 2)
    guider.prepare_models(transformer)
    try:
        if is_weaker and _count_hooks(transformer) == before:
            raise ValueError(
                f"{type(guider).__name__} weakens no layer of {type(transformer).__name__} for {name}, so it would "
                "guide by nothing; use another guider, such as SkipLayerGuidance."
            )
        yield
    finally:
        guider.cleanup_models(transformer)


def _count_hooks(transformer: torch.nn.Module) -> int:
    registries = (getattr(module, "_diffusers_hook", None) for module in transformer.modules())
    return sum(len(registry.hooks) for registry in registries if registry is not None)
