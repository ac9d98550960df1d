"""What iBOT, DINO and DINOv2 share: a student with a head, a teacher that is its average, crops, masks and centres."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, NotRequired, TypedDict

import torch
from torch import nn

from ..charts import Chart
from ..data.images.pixel_range import to_signed
from ..data.images.token_masks import expand_mask
from ..errors import InputError
from ..models.adapters import AutoencoderAdapter
from ..models.tcae.autoencoder_tc import AutoencoderTCFeatures
from ..objectives.schedules import teacher_momentum, teacher_temperature
from .arguments import SelfSupervisionArguments
from .collapse_monitor import CollapseMonitor
from .masked_tokens import MaskedTokens
from .method import SelfSupervision, StudentOutput
from .self_distillation_head import SelfDistillationHead
from .self_distillation_loss import SelfDistillationLoss
from .stochastic_depth import StochasticDepth
from .teacher import update_teacher


@dataclass
class DistillationViews:
    """
    Args:
        global_crops (`torch.Tensor` of shape `(2, B, 3, h, w)`): View-major, in [-1, 1].
        local_crops (`torch.Tensor` of shape `(L, B, 3, h', w')`, *optional*): View-major, in [-1, 1].
        token_mask (`torch.BoolTensor` of shape `(2, B, h / p, w / p)`, *optional*): Hidden patches of the global
            crops; none for a method without masks (DINO).
        masked_tokens ([`MaskedTokens`], *optional*): The same mask on the grid of the tokens that the head reads.
    """

    global_crops: torch.Tensor
    local_crops: torch.Tensor | None = None
    token_mask: torch.Tensor | None = None
    masked_tokens: MaskedTokens | None = None


def select_tokens(features: AutoencoderTCFeatures, place: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Class token `(B, D)` and patch tokens `(B, N, D)` at `"last"` or `"first_stage"`."""
    if place == "last":
        return features.class_token, features.last
    return features.first_stage_class_token, features.first_stage


class DistillationParts(nn.Module):
    """
    Head and mask token of the student.

    Args:
        head ([`SelfDistillationHead`]): Reads class tokens, and masked tokens if it predicts patches.
        token_width (`int`): Channels of a token.
        place (`str`): Which tokens the head reads, see [`select_tokens`].
    """

    def __init__(self, head: SelfDistillationHead, token_width: int, place: str):
        super().__init__()
        self.head = head
        self.place = place
        # Zero, as in the iBOT release: before training a masked patch is a patch that says nothing.
        self.mask_token = nn.Parameter(torch.zeros(token_width)) if head.patch_out_dim is not None else None

    def forward(
        self, adapter: AutoencoderAdapter, images: torch.Tensor, views: DistillationViews
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """
        Returns:
            What the encoder says of the images, and `class_logits` `(V, B, K)` of all views, global ones first,
            `class_tokens` `(2, B, D)` of the global views and, if the head predicts patches, `patch_logits` `(T, K)`.
        """
        encoder = adapter.token_encoder()
        crops = views.global_crops.flatten(0, 1)
        mask = None if views.token_mask is None else views.token_mask.flatten(0, 1)
        if crops.shape[1:] == images.shape[1:]:
            # Equal sizes share one pass: fewer, larger products.
            if mask is not None:
                mask = torch.cat([mask.new_zeros((images.shape[0], *mask.shape[1:])), mask])
            both = encoder(torch.cat([images, crops]), mask, self.mask_token)
            encoded = both.latent[: images.shape[0]]
            class_tokens, patch_tokens = (tokens[images.shape[0] :] for tokens in select_tokens(both, self.place))
        else:
            encoded = encoder(images).latent
            class_tokens, patch_tokens = select_tokens(encoder(crops, mask, self.mask_token), self.place)

        masked = None if views.masked_tokens is None else views.masked_tokens.gather(patch_tokens)
        all_class_tokens = [class_tokens]
        if views.local_crops is not None:
            all_class_tokens.append(select_tokens(encoder(views.local_crops.flatten(0, 1)), self.place)[0])
        class_logits, patch_logits = self.head(torch.cat(all_class_tokens).unflatten(0, (-1, images.shape[0])), masked)
        outputs = {"class_logits": class_logits, "class_tokens": class_tokens.unflatten(0, (2, -1))}
        return encoded, outputs if patch_logits is None else {**outputs, "patch_logits": patch_logits}


class Teacher(nn.Module):
    """
    Moving average of the student's encoder and head, without gradient; update it with [`teacher.update_teacher`].

    Args:
        encoder (`nn.Module`): The student's token encoder, copied in its current state.
        head ([`SelfDistillationHead`]): The student's, copied too.
        place (`str`): Which tokens the head reads.
    """

    def __init__(self, encoder: nn.Module, head: SelfDistillationHead, place: str):
        super().__init__()
        self.encoder = copy.deepcopy(encoder)
        self.head = copy.deepcopy(head)
        self.place = place
        self.requires_grad_(False)
        self.eval()

    @torch.no_grad()
    def forward(self, views: DistillationViews) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Class logits `(2, B, K)` and patch logits `(T, K)` of the global crops, nothing hidden; the latter `None`
        for a method without masked tokens."""
        class_tokens, patch_tokens = select_tokens(self.encoder(views.global_crops.flatten(0, 1)), self.place)
        masked = None if views.masked_tokens is None else views.masked_tokens.gather(patch_tokens)
        return self.head(class_tokens.unflatten(0, (2, -1)), masked)


class Recipe(TypedDict):
    """What sets the methods apart, see [`SelfDistillationHead`] and [`SelfDistillationLoss`]."""

    sharing: str
    centering: str
    mim_weight: NotRequired[float]
    koleo_weight: NotRequired[float]


class SelfDistillation(SelfSupervision):
    """
    One method of the family.

    Args:
        arguments ([`SelfSupervisionArguments`]): Of the run; what says `"method"` there is decided by the next ones.
        adapter ([`AutoencoderAdapter`]): Of the autoencoder.
        recipe ([`Recipe`]): Of the method.

    Raises:
        InputError: the autoencoder gives no tokens, none at that place, or cannot hide patches; sizes do not fit.
    """

    charts = (
        Chart(
            "Self-distillation losses",
            {
                "train/loss_ssl": "sum",
                "train/loss_mim": "masked tokens",
                "train/loss_cls": "across views",
                "train/loss_koleo": "KoLeo",
            },
            "Cross-entropy of the student with its own slow average, on masked tokens and across views. Falling means "
            "that hidden parts become predictable. The target moves too, so a rise early on is normal. KoLeo is high "
            "where class tokens crowd together.",
        ),
        Chart(
            "Is the teacher alive? Class token",
            {"ssl/teacher_class_entropy": "single outputs", "ssl/teacher_class_mean_entropy": "their mean"},
            "Entropy of single teacher outputs, and of their mean. Healthy: the mean stays high (all prototypes in "
            "use) while single outputs sharpen below it. Both at the maximum, or both at zero, would be collapse.",
        ),
        Chart(
            "Is the teacher alive? Patch tokens",
            {"ssl/teacher_patch_entropy": "single outputs", "ssl/teacher_patch_mean_entropy": "their mean"},
            "The same for the tokens of patches, which the masked tokens have to predict.",
        ),
    )

    parts: DistillationParts

    def __init__(self, arguments: SelfSupervisionArguments, adapter: AutoencoderAdapter, recipe: Recipe):
        mim_weight = recipe.get("mim_weight", 1.0)
        self.arguments = arguments
        self.adapter = adapter
        self.place = arguments.ssl_features
        self.hides_patches = mim_weight != 0
        self._check_tokens()
        self._resolve_crop_sizes()
        sharing = recipe["sharing"] if arguments.ssl_head_sharing == "method" else arguments.ssl_head_sharing
        if (
            self.hides_patches
            and sharing == "shared"
            and arguments.ssl_patch_out_dim not in (None, arguments.ssl_out_dim)
        ):
            raise InputError(
                f"--ssl_patch_out_dim {arguments.ssl_patch_out_dim} must be --ssl_out_dim, which is"
                f" {arguments.ssl_out_dim}: a shared head has one last layer. Or pass --ssl_head_sharing semi_shared"
                " or separate."
            )
        head = SelfDistillationHead(
            adapter.token_width,
            arguments.ssl_out_dim,
            arguments.ssl_patch_out_dim,
            arguments.ssl_hidden_dim,
            arguments.ssl_bottleneck_dim,
            sharing=sharing,
            predict_patches=self.hides_patches,
        )
        super().__init__(DistillationParts(head, adapter.token_width, self.place))
        self.distillation_loss = SelfDistillationLoss(
            arguments.ssl_out_dim,
            arguments.ssl_patch_out_dim,
            student_temperature=arguments.ssl_student_temperature,
            center_momentum=arguments.ssl_center_momentum,
            patch_center_momentum=arguments.ssl_patch_center_momentum,
            centering=recipe["centering"] if arguments.ssl_centering == "method" else arguments.ssl_centering,
            mim_weight=mim_weight,
            koleo_weight=recipe.get("koleo_weight", 0.0)
            if arguments.ssl_koleo_weight is None
            else arguments.ssl_koleo_weight,
            mim_average=arguments.ssl_mim_average,
        )
        if self.distillation_loss.koleo_weight and arguments.train_batch_size < 2:
            raise InputError(
                "KoLeo needs a second image beside each: --train_batch_size 1 must be 2 or more, or pass"
                " --ssl_koleo_weight 0."
            )
        self.teacher = Teacher(adapter.token_encoder(), head, self.place)
        # After the teacher was copied: a deep copy takes hooks along.
        self.stochastic_depth = None
        if arguments.ssl_drop_path:
            blocks = adapter.transformer_blocks()
            if not blocks:
                raise InputError(
                    f"--ssl_drop_path needs transformer blocks, which {adapter.class_name} lacks; omit it."
                )
            self.stochastic_depth = StochasticDepth(adapter.token_encoder(), blocks, arguments.ssl_drop_path)
        self.collapse = CollapseMonitor(
            arguments.ssl_out_dim,
            arguments.ssl_patch_out_dim,
            first_step=max(300, round(arguments.lr_warmup_fraction * arguments.max_train_steps)),
        )

    def _check_tokens(self) -> None:
        ssl, adapter = self.arguments.ssl, self.adapter
        if not adapter.token_places:
            raise InputError(f"--ssl {ssl} trains tokens: {adapter.no_tokens()}. Pass --ssl none.")
        if self.place not in adapter.token_places:
            raise InputError(
                f"--ssl_features {self.place}: {adapter.class_name} has tokens at"
                f" {', '.join(adapter.token_places)} only."
            )
        if self.hides_patches and not adapter.hides_patches:
            raise InputError(
                f"--ssl {ssl} hides patches from the encoder, which {adapter.class_name} does not support; pass --ssl"
                " dino or --ssl none."
            )

    def _resolve_crop_sizes(self) -> None:
        arguments, resolution, ratio = self.arguments, self.arguments.resolution, self.adapter.spatial_ratio
        # What the model or the user says is filled in before a method is built.
        assert resolution is not None
        self.global_crop_size = arguments.ssl_global_crop_size or resolution
        local_crop_size = arguments.ssl_local_crop_size or max(ratio, resolution // 2 // ratio * ratio)
        arguments.ssl_global_crop_size, arguments.ssl_local_crop_size = self.global_crop_size, local_crop_size
        self.adapter.check_side("--ssl_global_crop_size", self.global_crop_size)
        self.adapter.check_side("--ssl_local_crop_size", local_crop_size)

    @property
    def mask_group_pixels(self) -> int:
        """
        Side in pixels of a mask group. A last token is the least, so that a mask survives staged compression; half a
        latent position is the least too, or the ablation without staged compression would mask in another way as well.
        """
        return max(self.adapter.token_pixels("last"), self.adapter.spatial_ratio // 2)

    @property
    def description(self) -> str:
        return f"{self.arguments.ssl} on the tokens {self.place}"

    @property
    def identity(self) -> dict[str, Any]:
        if self.hides_patches and self.distillation_loss.mim_average != "images":
            return {"mim_average": self.distillation_loss.mim_average}
        return {}

    def crops(self) -> dict[str, Any]:
        arguments = self.arguments
        side = self.global_crop_size // self.mask_group_pixels
        return {
            "global_crop_size": self.global_crop_size,
            "local_crop_size": arguments.ssl_local_crop_size,
            "num_local_crops": arguments.ssl_num_local_crops,
            "global_crop_scale": (arguments.ssl_global_crop_min_scale, 1.0),
            "local_crop_scale": (arguments.ssl_local_crop_min_scale, arguments.ssl_global_crop_min_scale),
            "mask_grid": (side, side) if self.hides_patches else None,
            "mask_probability": arguments.ssl_mask_probability,
            "mask_ratio": (arguments.ssl_mask_ratio_min, arguments.ssl_mask_ratio_max),
            "mask_shape": arguments.ssl_mask_shape,
        }

    def prepare(
        self, batch: dict[str, torch.Tensor], generators: list[torch.Generator], device: torch.device
    ) -> DistillationViews:
        views = DistillationViews(
            view_major(batch["global_crops"], device),
            view_major(batch["local_crops"], device) if "local_crops" in batch else None,
        )
        if self.stochastic_depth is not None:
            local = 0 if views.local_crops is None else views.local_crops.shape[0]
            self.stochastic_depth.draw(generators, 2 + local, device)
        if "masks" in batch:
            views.token_mask, views.masked_tokens = self._token_masks(batch["masks"], device)
        return views

    def _token_masks(self, masks: torch.Tensor, device: torch.device) -> tuple[torch.Tensor, MaskedTokens]:
        """Masks of the global crops from those drawn on groups: `(2, B, h / p, w / p)` over patches for the encoder,
        and the hidden tokens on the grid that the head reads."""
        group_mask = masks.transpose(0, 1)
        per_patch = self.mask_group_pixels // self.adapter.token_pixels("first_stage")
        token_mask = expand_mask(group_mask, per_patch)
        head_mask = expand_mask(group_mask, self.mask_group_pixels // self.adapter.token_pixels(self.place))
        # Counted while still on the CPU: counting on a GPU would wait for it.
        masked_tokens = MaskedTokens.from_mask(head_mask.flatten(-2)).to(device)
        return token_mask.to(device, non_blocking=True), masked_tokens

    def temperatures(self, step: int) -> tuple[float, float]:
        """Of the teacher for class and for patch tokens; they warm up over the same steps."""
        arguments = self.arguments

        def between(first: float, last: float) -> float:
            warmup = arguments.ssl_teacher_temperature_warmup_fraction
            return teacher_temperature(step, arguments.max_train_steps, first, last, warmup)

        first, last = arguments.ssl_teacher_temperature_start, arguments.ssl_teacher_temperature
        # Temperatures are above 0.
        patch_first = arguments.ssl_patch_teacher_temperature_start or first
        return between(first, last), between(patch_first, arguments.ssl_patch_teacher_temperature or last)

    def loss(
        self, output: StudentOutput, views: DistillationViews, step: int, with_diagnostics: bool
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        class_logits, patch_logits = self.teacher(views)
        temperature, patch_temperature = self.temperatures(step)
        ssl = self.distillation_loss(
            output.method["class_logits"],
            class_logits,
            output.method.get("patch_logits"),
            patch_logits,
            views.masked_tokens,
            teacher_temperature=temperature,
            patch_teacher_temperature=patch_temperature,
            student_class_tokens=output.method["class_tokens"],
            with_diagnostics=with_diagnostics,
        )
        metrics = {"train/loss_ssl": ssl.loss, "train/loss_cls": ssl.loss_cls}
        if self.hides_patches:
            metrics["train/loss_mim"] = ssl.loss_mim
        if self.distillation_loss.koleo_weight:
            metrics["train/loss_koleo"] = ssl.loss_koleo
        return ssl.loss, {**metrics, **{f"ssl/{name}": value for name, value in ssl.diagnostics.items()}}

    def after_backward(self, step: int) -> None:
        if step < self.arguments.ssl_freeze_last_layer_steps:
            self.parts.head.cancel_last_layer_gradients()

    def after_step(self, step: int, skipped: torch.Tensor) -> None:
        self.distillation_loss.discard_pending(skipped > 0)
        self.distillation_loss.update_centers()
        momentum = teacher_momentum(step, self.arguments.max_train_steps, self.arguments.ssl_teacher_momentum)
        student = [self.adapter.token_encoder(), self.parts.head]
        update_teacher(student, [self.teacher.encoder, self.teacher.head], momentum)

    def state(self) -> list[nn.Module]:
        return [self.teacher, self.distillation_loss]

    def warning(self, step: int, logged: dict[str, float]) -> str | None:
        diagnostics = {name[4:]: value for name, value in logged.items() if name.startswith("ssl/teacher_")}
        warning = self.collapse.add(step, diagnostics)
        return warning and f"the teacher may be collapsing: {warning}"


def view_major(crops: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Crops `(B, V, 3, h, w)` in uint8 -> `(V, B, 3, h, w)` in [-1, 1]."""
    return to_signed(crops, device).transpose(0, 1).contiguous()
