"""The transformers that train_dit can train, by one option, and the id that each gives to "no label"."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from accelerate.logging import get_logger
from diffusers import DiffusionPipeline, DiTTransformer2DModel, ModelMixin
from diffusers.models.embeddings import LabelEmbedding

from tcae_diffusers.errors import InputError
from tcae_diffusers.models.tcae.transformer_tc_dit import TC_DIT_PRESETS, TCDiTTransformer2DModel
from tcae_diffusers.models.whole_weights import load_whole_model

logger = get_logger(__name__)

DIT, TC_DIT = "dit", "tc-dit"
# Classes of the blocks that each repeats, for regional compilation.
BLOCKS = ("BasicTransformerBlock", "TCDiTBlock")
# What FSDP gathers at a time. The last layer of diffusers' DiT calls the embedding of its first block once more, from
# outside of that block, so embeddings are units of their own.
SHARDED_UNITS = (*BLOCKS, "CombinedTimestepLabelEmbeddings")
TRANSFORMERS = (DIT, TC_DIT, *TC_DIT_PRESETS)

# Layers that read latents or write them.
LATENT_LAYERS = ("pos_embed.proj", "proj_in", "proj_out", "proj_out_1", "proj_out_2")

# The null class that diffusers' stock DiTPipeline asks for, whatever the number of classes.
STOCK_NULL_CLASS_ID = 1000


def choose_null_class_id(requested: int | None, num_classes: int, prediction_type: str) -> int:
    """
    Class id of "no label": what was requested, else 1000 where the stock `DiTPipeline` could run the result (epsilon
    and v prediction, at most 1000 classes), else the number of classes.

    Raises:
        ValueError: if the requested id is that of a class.
    """
    if requested is not None:
        if requested < num_classes:
            raise ValueError(f"--null_class_id {requested} is the id of a class; choose {num_classes} or above.")
        return requested
    if not prediction_type.startswith("flow") and num_classes <= STOCK_NULL_CLASS_ID:
        return STOCK_NULL_CLASS_ID
    return num_classes


def check_latent_shapes(name: str, latent_shapes: Iterable[tuple[int, int, int]], patch_size: int) -> None:
    """
    Raises:
        InputError: if the transformer `name` cannot take latents of each shape `(C, h, w)` in such patches.
    """
    sizes = sorted({(height, width) for _, height, width in latent_shapes})
    for height, width in sizes:
        if height % patch_size or width % patch_size:
            raise InputError(
                f"--patch_size {patch_size} does not divide the latents, some of which are {height}x{width}; cache"
                " them at other resolutions, or with an --aspect_ratio_divisor for this size."
            )
        if name == DIT and height != width:
            raise InputError(
                f"latents are {height}x{width}, and DiT supports square latents only; use --transformer tc-dit."
            )
    if name == DIT and len(sizes) > 1:
        in_words = ", ".join(f"{height}x{width}" for height, width in sizes)
        raise InputError(f"latents are {in_words}, and DiT supports a single size only; use --transformer tc-dit.")


def build_transformer(
    name: str,
    latent_shape: tuple[int, int, int],
    num_classes: int,
    null_class_id: int,
    num_layers: int | None = None,
    num_attention_heads: int | None = None,
    attention_head_dim: int | None = None,
    patch_size: int = 1,
) -> ModelMixin:
    """
    A transformer with random weights.

    Args:
        name (`str`): `"dit"` (diffusers' `DiTTransformer2DModel`), `"tc-dit"` or one of its presets.
        latent_shape (`tuple[int, int, int]`): `(C, h, w)`.
        num_classes (`int`), null_class_id (`int`): See [`choose_null_class_id`].
        num_layers, num_attention_heads, attention_head_dim (`int`, *optional*): Replace the preset's; without a
            preset, DiT-XL's 28, 16 and 72.
        patch_size (`int`, defaults to 1): Latent positions per token side.

    Raises:
        ValueError: if the transformer cannot take such latents.
    """
    check_latent_shapes(name, [latent_shape], patch_size)
    channels, height, _ = latent_shape
    sizes = {
        "num_layers": num_layers,
        "num_attention_heads": num_attention_heads,
        "attention_head_dim": attention_head_dim,
    }
    sizes = {key: value for key, value in sizes.items() if value is not None}
    shared = {"in_channels": channels, "out_channels": channels, "sample_size": height, "patch_size": patch_size}
    if name != DIT:
        preset = TC_DIT_PRESETS.get(name, TC_DIT_PRESETS["tc-dit-xl"])
        classes = {"num_classes": num_classes, "null_class_id": null_class_id}
        return TCDiTTransformer2DModel(**{**preset, **sizes}, **shared, **classes)
    # Its null class is the row after the last class. Rows between our classes and that one are never used.
    return DiTTransformer2DModel(
        **{"num_layers": 28, "num_attention_heads": 16, "attention_head_dim": 72, **sizes},
        **shared,
        num_embeds_ada_norm=null_class_id,
    )


def load_transformer_weights(
    transformer: ModelMixin, path: str, prediction_type: str, id2label: Mapping[int, str]
) -> None:
    """
    Give `transformer` the weights of the one in the folder `path`, or in the pipeline that is there. It may have been
    trained on latents of another size: positions are computed, not learned.

    Args:
        prediction_type, id2label: What will be trained. Only a pipeline says what its transformer was trained for.

    Raises:
        InputError: there is no transformer, or one of other dimensions, channels or classes, or of a pipeline with
            another prediction, or with some of the same classes under other ids.
    """
    option, folder = f"--transformer_weights {path}", Path(path)
    if (folder / "model_index.json").is_file():
        _require_the_same_task(option, folder, prediction_type, id2label)
        folder = folder / "transformer"
    if not (folder / "config.json").is_file():
        raise InputError(f"{option} is neither a transformer nor a pipeline: no {folder / 'config.json'}")
    try:
        trained = load_whole_model(folder, dtype=transformer.dtype)
    except (OSError, ValueError) as error:
        raise InputError(f"{option}: cannot load {folder}: {error}") from error
    ours, theirs = transformer.state_dict(), trained.state_dict()
    for name in [*ours, *(name for name in theirs if name not in ours)]:
        shapes = [tuple(state[name].shape) if name in state else "absent" for state in (ours, theirs)]
        if shapes[0] != shapes[1]:
            raise InputError(
                f"{option} is a {type(trained).__name__} whose {name} is {shapes[1]}, and that of the transformer to"
                f" train ({type(transformer).__name__}) is {shapes[0]}; give --transformer, --num_layers and the like"
                " the values that it was trained with, and pass latents with as many channels and classes."
            )
    transformer.load_state_dict(theirs)


def _require_the_same_task(option: str, folder: Path, prediction_type: str, id2label: Mapping[int, str]) -> None:
    config = DiffusionPipeline.load_config(folder)
    if (theirs := config.get("prediction_type")) not in (None, prediction_type):
        raise InputError(
            f"{option} was trained with prediction type {theirs!r}, and this run has {prediction_type!r}; choose the "
            "same --objective and the options that belong to it."
        )
    known = {str(name): int(class_id) for class_id, name in (config.get("id2label") or {}).items()}
    moved = [name for class_id, name in id2label.items() if known.get(name, class_id) != class_id]
    if moved:
        own = {name: class_id for class_id, name in id2label.items()}[moved[0]]
        raise InputError(
            f"{option} has the class {moved[0]!r} as {known[moved[0]]}, and the latents have it as {own}: it would"
            " begin with what was learned of another class; cache latents of data whose classes have the same order."
        )
    if renamed := [name for name in id2label.values() if name not in known]:
        logger.info(f"{option} does not know {len(renamed)} of the classes, such as {renamed[0]!r}")


def set_training_mode(transformer: ModelMixin) -> None:
    """
    `train()`, but with diffusers' own label dropout off: every block of its DiT has a label embedding that would drop
    independently, so a sample would lose its label in some blocks only. train_dit drops it for all at once.
    """
    transformer.train()
    for module in transformer.modules():
        if isinstance(module, LabelEmbedding):
            module.eval()


def drop_labels(labels: torch.Tensor, drop: torch.Tensor, null_class_id: int) -> torch.Tensor:
    """`labels` `(B,)` with the null class where `drop` `(B,)` is set."""
    return torch.where(drop, null_class_id, labels)
