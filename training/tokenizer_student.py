"""What `train_tcae` trains, and on which views of the images."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from diffusers import ModelMixin

from tcae_diffusers.data.images.multi_crop import MultiCropTransform
from tcae_diffusers.data.images.streamed_images import StreamedImages
from tcae_diffusers.data.images.token_masks import expand_mask
from tcae_diffusers.data.images.training_dataset import TokenizerTrainingDataset
from tcae_diffusers.self_supervision.joint_tokenizer import JointTokenizer
from tcae_diffusers.self_supervision.masked_tokens import MaskedTokens
from tcae_diffusers.self_supervision.plain_tokenizer import PlainTokenizer
from tcae_diffusers.self_supervision.self_distillation import SelfDistillationLoss, build_self_distillation
from tcae_diffusers.self_supervision.stochastic_depth import StochasticDepth
from tcae_diffusers.trainer.tokenizer_setup import build_training_images, check_multiple, to_unit_range

if TYPE_CHECKING:
    from tcae_diffusers.training.tokenizer_arguments import TokenizerArguments


def build_dataset(arguments: TokenizerArguments, autoencoder: ModelMixin) -> TokenizerTrainingDataset | StreamedImages:
    """The images, and the views that the objective needs of each."""
    views = {}
    if arguments.ssl != "none":
        # Masks are drawn on groups of patches that one token of the last stage stands for, so they survive the cut.
        side = arguments.ssl_global_crop_size // mask_group_pixels(autoencoder)
        views = {
            "global_crop_size": arguments.ssl_global_crop_size,
            "local_crop_size": arguments.ssl_local_crop_size,
            "num_local_crops": arguments.ssl_num_local_crops,
            "mask_grid": (side, side) if arguments.ssl != "dino" else None,
        }
    transform = MultiCropTransform(
        arguments.resolution,
        horizontal_flip=arguments.horizontal_flip,
        global_crop_scale=(arguments.ssl_global_crop_min_scale, 1.0),
        local_crop_scale=(arguments.ssl_local_crop_min_scale, arguments.ssl_global_crop_min_scale),
        mask_probability=arguments.ssl_mask_probability,
        mask_ratio=(arguments.ssl_mask_ratio_min, arguments.ssl_mask_ratio_max),
        mask_shape=arguments.ssl_mask_shape,
        **views,
    )
    return build_training_images(arguments, transform)


def mask_group_pixels(autoencoder: ModelMixin) -> int:
    """Side in pixels of a mask group: a patch, or 2x2 patches with staged compression."""
    return autoencoder.config.patch_size * (2 if autoencoder.config.staged_compression else 1)


def build_student(
    arguments: TokenizerArguments, autoencoder: ModelMixin
) -> tuple[JointTokenizer | PlainTokenizer, SelfDistillationLoss | None]:
    """The modules with gradient, and the self-supervised loss with its centres."""
    has_token_features = hasattr(autoencoder, "forward_features")
    if arguments.ssl == "none":
        return JointTokenizer(autoencoder) if has_token_features else PlainTokenizer(autoencoder), None
    if not has_token_features:
        raise ValueError(
            f"--ssl {arguments.ssl} needs the tokens of the encoder, which {type(autoencoder).__name__} does not give;"
            " pass --ssl none, or train an AutoencoderTC."
        )
    options = {
        "sharing": None if arguments.ssl_head_sharing == "method" else arguments.ssl_head_sharing,
        "student_temperature": arguments.ssl_student_temperature,
        "center_momentum": arguments.ssl_center_momentum,
        "patch_center_momentum": arguments.ssl_patch_center_momentum,
        "mim_average": arguments.ssl_mim_average,
    }
    if arguments.ssl_centering != "method":
        options["centering"] = arguments.ssl_centering
    if arguments.ssl_koleo_weight is not None:
        options["koleo_weight"] = arguments.ssl_koleo_weight
    head, ssl_loss = build_self_distillation(
        arguments.ssl,
        autoencoder.config.hidden_size,
        out_dim=arguments.ssl_out_dim,
        patch_out_dim=arguments.ssl_patch_out_dim,
        hidden_dim=arguments.ssl_hidden_dim,
        bottleneck_dim=arguments.ssl_bottleneck_dim,
        **options,
    )
    return JointTokenizer(autoencoder, head, arguments.ssl_features), ssl_loss


def parameter_groups(model: torch.nn.Module, arguments: TokenizerArguments) -> list[dict]:
    """Encoder and head follow the weight decay schedule, the decoder keeps its start; vectors have none."""
    groups = {name: [] for name in ("scheduled", "constant", "none")}
    for name, parameter in model.named_parameters():
        if parameter.ndim <= 1 or name.endswith(("class_token", "mask_token")):
            groups["none"].append(parameter)
        elif name.startswith("autoencoder.decoder."):
            groups["constant"].append(parameter)
        else:
            groups["scheduled"].append(parameter)
    decay = {"scheduled": arguments.weight_decay, "constant": arguments.weight_decay, "none": 0.0}
    return [
        {"params": parameters, "name": name, "weight_decay": decay[name]}
        for name, parameters in groups.items()
        if parameters
    ]


def resolve_crop_sizes(arguments: TokenizerArguments, ratio: int) -> None:
    """Fill in the sizes of the crops and check them."""
    arguments.ssl_global_crop_size = arguments.ssl_global_crop_size or arguments.resolution
    arguments.ssl_local_crop_size = arguments.ssl_local_crop_size or max(
        ratio, arguments.resolution // 2 // ratio * ratio
    )
    for name in ("ssl_global_crop_size", "ssl_local_crop_size"):
        check_multiple(name, getattr(arguments, name), ratio)


def add_stochastic_depth(autoencoder: ModelMixin, rate: float) -> StochasticDepth | None:
    if rate == 0:
        return None
    if not hasattr(autoencoder, "forward_features"):
        raise ValueError(
            f"--ssl_drop_path works with AutoencoderTC, not with {type(autoencoder).__name__}; leave it at 0."
        )
    encoder = autoencoder.encoder
    return StochasticDepth(encoder, [*encoder.first_blocks, *encoder.last_blocks], rate)


def token_masks(
    batch: dict, autoencoder: ModelMixin, ssl_features: str, device: torch.device
) -> tuple[torch.Tensor | None, MaskedTokens | None]:
    """
    Masks of the global crops from those drawn on groups: `(2, B, h / p, w / p)` over patches for the encoder, and the
    hidden tokens on the grid that the head reads. `None` twice for a method without masks.
    """
    if "masks" not in batch:
        return None, None
    group_mask = batch["masks"].transpose(0, 1)
    token_mask = expand_mask(group_mask, mask_group_pixels(autoencoder) // autoencoder.config.patch_size)
    head_mask = group_mask if ssl_features == "last" else token_mask
    # Counted while still on the CPU: counting on a GPU would wait for it.
    masked_tokens = MaskedTokens.from_mask(head_mask.flatten(-2)).to(device)
    return token_mask.to(device, non_blocking=True), masked_tokens


def view_major(crops: torch.Tensor | None, device: torch.device) -> torch.Tensor | None:
    """Crops `(B, V, 3, h, w)` in uint8 -> `(V, B, 3, h, w)` in [-1, 1]."""
    return None if crops is None else to_unit_range(crops, device).transpose(0, 1).contiguous()
