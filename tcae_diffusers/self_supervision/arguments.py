"""Options of self-supervision."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from ..arguments import Arguments, option
from . import available_methods


class TokenizerRun:
    """What a method reads of a run's other options, beside which [`SelfSupervisionArguments`] stands."""

    resolution: int | None
    max_train_steps: int
    train_batch_size: int
    lr_warmup_fraction: float


# For options of self-distillation, and of those methods among them that hide tokens. A new method is taken for one of
# them: what it reads is its own business.
_DISTILLATION = ("ssl", *(method for method in available_methods() if method not in ("mae", "none")))
_MASKED = tuple(method for method in _DISTILLATION if method != "dino")


@dataclass
class SelfSupervisionArguments(Arguments, TokenizerRun):
    """Self-supervised training of the tokens, in addition to reconstruction."""

    group: ClassVar[str] = "Self-supervision"
    switch: ClassVar[str] = "ssl"

    ssl: str = option("ibot", "Self-supervised method; none is the paper's ablation.", choices=available_methods())
    ssl_options: dict = option(
        {}, 'Options specific to the method, as JSON; for mae: {"mask_ratio": 0.75}.', metavar="JSON"
    )
    ssl_weight: float = option(1.0, "Weight of the self-supervised loss.", at_least=0)
    ssl_features: Literal["last", "first_stage"] = option(
        "last",
        "Tokens that the self-supervised head reads: those of the last encoder block, or those before the"
        " intermediate bottleneck.",
        needs=_DISTILLATION,
    )
    ssl_out_dim: int = option(8192, "Prototypes of the self-supervised head.", needs=_DISTILLATION, at_least=1)
    ssl_patch_out_dim: int | None = option(
        None,
        "Prototypes for patch tokens, for heads that share no last layer; --ssl_out_dim if unset.",
        needs=_MASKED,
        at_least=1,
    )
    ssl_hidden_dim: int = option(2048, "Hidden width of the self-supervised head.", needs=_DISTILLATION, at_least=1)
    ssl_bottleneck_dim: int = option(
        256, "Bottleneck width of the self-supervised head.", needs=_DISTILLATION, at_least=1
    )
    ssl_head_sharing: Literal["method", "shared", "semi_shared", "separate"] = option(
        "method",
        "Parts of the head that class and patch tokens share; method follows the authors of --ssl.",
        needs=_MASKED,
    )
    ssl_centering: Literal["method", "momentum", "sinkhorn_knopp"] = option(
        "method",
        "How the teacher's outputs are balanced over the prototypes; method follows the authors of --ssl.",
        needs=_DISTILLATION,
    )
    ssl_koleo_weight: float | None = option(
        None,
        "Weight of the KoLeo regulariser; 0.1 for dinov2 and 0 for other methods if unset.",
        needs=_DISTILLATION,
        at_least=0,
    )
    ssl_global_crop_size: int | None = option(
        None,
        "Side in pixels of the two global crops; --resolution if unset.",
        metavar="PIXELS",
        needs=_DISTILLATION,
        at_least=1,
    )
    ssl_local_crop_size: int | None = option(
        None,
        "Side in pixels of the local crops; half of --resolution if unset.",
        metavar="PIXELS",
        needs=_DISTILLATION,
        at_least=1,
    )
    ssl_num_local_crops: int = option(
        2, "Local crops per image (the paper's setting allows up to 10).", at_least=0, needs=_DISTILLATION
    )
    ssl_global_crop_min_scale: float = option(
        0.25,
        "Smallest fraction of the image's area that a global crop covers; the largest is 1.",
        metavar="FRACTION",
        above=0,
        at_most=1,
        needs=_DISTILLATION,
    )
    ssl_local_crop_min_scale: float = option(
        0.05,
        "Smallest fraction of the image's area that a local crop covers; the largest is --ssl_global_crop_min_scale.",
        metavar="FRACTION",
        above=0,
        at_most=1,
        needs=_DISTILLATION,
    )
    ssl_mask_probability: float = option(
        0.5, "Fraction of the global crops that are masked.", metavar="FRACTION", at_least=0, at_most=1, needs=_MASKED
    )
    ssl_mask_ratio_min: float = option(
        0.1,
        "Smallest fraction of the token groups hidden in a masked crop.",
        metavar="FRACTION",
        needs=_MASKED,
        above=0,
        below=1,
    )
    ssl_mask_ratio_max: float = option(
        0.5,
        "Largest fraction of the token groups hidden in a masked crop.",
        metavar="FRACTION",
        needs=_MASKED,
        above=0,
        below=1,
    )
    ssl_mask_shape: Literal["random", "block"] = option(
        "block",
        "Arrangement of the hidden token groups: at random, or in rectangular blocks, as in iBOT's published runs.",
        needs=_MASKED,
    )
    ssl_student_temperature: float = option(0.1, "Softmax temperature of the student.", needs=_DISTILLATION, above=0)
    ssl_teacher_temperature_start: float = option(
        0.04, "Softmax temperature of the teacher at the first step.", above=0, needs=_DISTILLATION
    )
    ssl_teacher_temperature: float = option(
        0.07, "Softmax temperature of the teacher after its warm-up.", above=0, needs=_DISTILLATION
    )
    ssl_teacher_temperature_warmup_fraction: float = option(
        0.3,
        "Fraction of the steps during which the teacher's temperature changes linearly.",
        metavar="FRACTION",
        needs=_DISTILLATION,
        at_least=0,
        at_most=1,
    )
    ssl_patch_teacher_temperature_start: float | None = option(
        None,
        "Softmax temperature of the teacher's patch tokens at the first step; --ssl_teacher_temperature_start if"
        " unset.",
        above=0,
        needs=_MASKED,
    )
    ssl_patch_teacher_temperature: float | None = option(
        None,
        "Softmax temperature of the teacher's patch tokens after the warm-up; --ssl_teacher_temperature if unset.",
        above=0,
        needs=_MASKED,
    )
    ssl_teacher_momentum: float = option(
        0.996,
        "Momentum of the teacher at the first step, which rises to 1; 0.9995 suits batches below 512 images.",
        at_least=0,
        at_most=1,
        needs=_DISTILLATION,
    )
    ssl_center_momentum: float = option(
        0.9, "Momentum of the centre of the teacher's class tokens.", needs=_DISTILLATION, at_least=0, at_most=1
    )
    ssl_patch_center_momentum: float | None = option(
        None,
        "Momentum of the centre of the teacher's patch tokens; --ssl_center_momentum if unset.",
        needs=_MASKED,
        at_least=0,
        at_most=1,
    )
    ssl_mim_average: Literal["images", "masked_tokens"] = option(
        "images",
        "How the loss of masked tokens is averaged: within each image and then over images (iBOT), or over all "
        "masked tokens equally.",
        needs=_MASKED,
    )
    ssl_freeze_last_layer_steps: int = option(
        0, "Steps at the start during which the head's last layer is not trained.", needs=_DISTILLATION, at_least=0
    )
    ssl_drop_path: float = option(
        0.0,
        "Stochastic depth rate of the student's last encoder block; earlier blocks have lower rates (iBOT: 0.1).",
        at_least=0,
        below=1,
        needs=_DISTILLATION,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(
            "ssl_mask_ratio_max",
            self.ssl_mask_ratio_min <= self.ssl_mask_ratio_max,
            f"at least --ssl_mask_ratio_min, which is {self.ssl_mask_ratio_min:g}",
        )
        self._require(
            "ssl_local_crop_min_scale",
            self.ssl_local_crop_min_scale <= self.ssl_global_crop_min_scale,
            f"at most --ssl_global_crop_min_scale, which is {self.ssl_global_crop_min_scale:g}",
        )
