"""From arguments to the parts of a tokenizer run: any autoencoder of diffusers, its losses, its batches."""

import difflib
import inspect
import json
from pathlib import Path
from typing import Any

import diffusers
import torch
from accelerate import Accelerator, DistributedType
from diffusers import ModelMixin
from safetensors import SafetensorError
from torch.utils.data import DataLoader

from ..data.images.multi_crop import MultiCropTransform
from ..data.images.sources import build_image_source
from ..data.images.streamed_images import SCHEME as STREAM_SCHEME
from ..data.images.streamed_images import StreamedImages
from ..data.images.training_dataset import TokenizerTrainingDataset, collate_training_views
from ..data.step_indexed_sampler import StepIndexedBatchSampler
from ..models import AutoencoderTC
from ..models.adapters import spatial_ratio
from ..models.autoencoder_tc_presets import AUTOENCODER_TC_PRESETS
from ..objectives.perceptual import build_perceptual_loss
from ..objectives.reconstruction import ReconstructionLoss
from .reconstruction_preview import ReconstructionPreview
from .tokenizer_arguments import ReconstructionArguments


def build_autoencoder(name: str, overrides: dict[str, Any] | None = None) -> ModelMixin:
    """
    The tokenizer to train. Its config decides the class, so baselines train through the same script.

    Args:
        name (`str`):
            A preset of [`AutoencoderTC`]; or a folder with a `config.json` of any autoencoder of diffusers, and
            weights to start from if there are any; or a `.json` file of that kind.
        overrides (`dict`, *optional*): Config arguments that replace the named ones.

    Raises:
        ValueError: unknown preset, class or config argument, a config that does not fit together, or broken weights.
    """
    overrides = overrides or {}
    path = Path(name)
    if not path.is_dir() and path.suffix != ".json":
        if name not in AUTOENCODER_TC_PRESETS:
            close = difflib.get_close_matches(name, AUTOENCODER_TC_PRESETS, n=3)
            hint = f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(AUTOENCODER_TC_PRESETS)}."
            raise ValueError(f"--autoencoder {name} is no preset and no folder with a config.json; {hint}")
        return _construct(AutoencoderTC, {**AUTOENCODER_TC_PRESETS[name], **overrides}, name)
    config_file = path / "config.json" if path.is_dir() else path
    try:
        config = json.loads(config_file.read_text())
    except FileNotFoundError:
        raise ValueError(f"--autoencoder {name}: {config_file} does not exist.") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"--autoencoder {name}: {config_file} is not JSON ({error}).") from error
    class_name = config.get("_class_name", "AutoencoderTC")
    model_class = getattr(diffusers, class_name, None)
    if model_class is None or not hasattr(model_class, "encode"):
        raise ValueError(
            f"--autoencoder {name}: {config_file} names the class {class_name!r}, which is no autoencoder of"
            f" diffusers {diffusers.__version__} or of this package."
        )
    if not path.is_dir() or not any(path.glob("diffusion_pytorch_model*")):
        values = {key: value for key, value in config.items() if not key.startswith("_")}
        return _construct(model_class, {**values, **overrides}, name)
    _check_keys(model_class, overrides, name)
    try:
        return model_class.from_pretrained(name, low_cpu_mem_usage=False, **overrides)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"--autoencoder {name}: its weights cannot be loaded: {error}") from error


def _check_keys(model_class: type, values: dict[str, Any], name: str) -> None:
    known = inspect.signature(model_class.__init__).parameters.keys() - {"self"}
    for key in values:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=3)
            hint = f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(sorted(known))}."
            raise ValueError(f"--autoencoder {name}: {model_class.__name__} has no config argument {key!r}; {hint}")


def _construct(model_class: type, values: dict[str, Any], name: str) -> ModelMixin:
    _check_keys(model_class, values, name)
    try:
        return model_class(**values)
    except TypeError as error:
        raise ValueError(f"--autoencoder {name}: {model_class.__name__} cannot be built: {error}") from error


def resolve_sizes(arguments: ReconstructionArguments, autoencoder: ModelMixin) -> None:
    """
    Fill in the sizes that follow from the model, and check them.

    Raises:
        ValueError: no resolution to be known, or one that is no multiple of the compression ratio.
    """
    arguments.resolution = arguments.resolution or autoencoder.config.get("sample_size")
    if arguments.resolution is None:
        raise ValueError(f"the config of {type(autoencoder).__name__} has no sample_size; pass --resolution.")
    arguments.data_resolution = arguments.data_resolution or 2 * arguments.resolution
    check_multiple("resolution", arguments.resolution, spatial_ratio(autoencoder))


def require_whole_parameters(accelerator: Accelerator) -> None:
    """
    Raises `ValueError` where parameters are sharded over ranks, for commands that train a discriminator too: with
    FSDP, accelerate prepares one model and one optimizer per process.
    """
    if accelerator.distributed_type == DistributedType.FSDP:
        raise ValueError(
            "accelerate shards one model with FSDP; the discriminator is a second. Use"
            " DistributedDataParallel: choose multi-GPU without FSDP in `accelerate config`, or pass --multi_gpu or"
            " --config_file training/configs/accelerate/ddp.yaml to `accelerate launch`."
        )


def check_multiple(name: str, size: int, ratio: int) -> None:
    """Raises `ValueError` if `size` pixels are not whole latent positions."""
    if size % ratio:
        raise ValueError(
            f"--{name} {size} is not a multiple of the compression ratio {ratio}; use {max(1, size // ratio) * ratio}"
            f" or {(size // ratio + 1) * ratio}."
        )


def build_reconstruction_loss(arguments: ReconstructionArguments) -> ReconstructionLoss:
    """
    Raises:
        ValueError, FileNotFoundError, ImportError: weights of the perceptual network that cannot be had or used.
    """
    if arguments.perceptual.startswith("lpips") and arguments.resolution < 32:
        raise ValueError(
            f"--perceptual {arguments.perceptual} needs images of at least 32x32, --resolution is"
            f" {arguments.resolution}; use efficientnet-lite0, which enlarges them, or none."
        )
    return ReconstructionLoss(
        arguments.pixel_loss,
        arguments.pixel_weight,
        arguments.mse_weight,
        build_perceptual_loss(arguments.perceptual, arguments.perceptual_weights_path),
        arguments.perceptual_weight,
    )


def build_training_images(
    arguments: ReconstructionArguments, transform: MultiCropTransform
) -> TokenizerTrainingDataset | StreamedImages:
    """
    What `--train_data` names, with the views of `transform`.

    Raises:
        ValueError, FileNotFoundError, ImportError: it cannot be had or understood.
    """
    if arguments.train_data.startswith(STREAM_SCHEME):
        return StreamedImages(arguments.train_data, transform, arguments.seed, arguments.max_broken_images)
    source = build_image_source(arguments.train_data, resolution=arguments.data_resolution)
    return TokenizerTrainingDataset(
        source, transform, seed=arguments.seed, max_broken_images=arguments.max_broken_images
    )


def build_loader(
    dataset: TokenizerTrainingDataset | StreamedImages,
    arguments: ReconstructionArguments,
    accelerator: Accelerator,
    first_step: int,
) -> DataLoader:
    """This rank's batches from `first_step` on, in the order that an uninterrupted run has."""
    options = {
        "collate_fn": collate_training_views,
        "num_workers": arguments.dataloader_num_workers,
        "pin_memory": accelerator.device.type == "cuda",
    }
    if isinstance(dataset, StreamedImages):
        stream = dataset.open(
            rank=accelerator.process_index,
            world_size=accelerator.num_processes,
            batch_size=arguments.train_batch_size,
            start_batch=first_step * arguments.gradient_accumulation_steps,
        )
        return DataLoader(stream, batch_size=arguments.train_batch_size, **options)
    return DataLoader(
        dataset,
        batch_sampler=StepIndexedBatchSampler(
            num_samples=len(dataset),
            batch_size_per_rank=arguments.train_batch_size,
            rank=accelerator.process_index,
            world_size=accelerator.num_processes,
            seed=arguments.seed,
            start_step=first_step,
            num_steps=arguments.max_train_steps - first_step,
            gradient_accumulation_steps=arguments.gradient_accumulation_steps,
        ),
        **options,
    )


def build_preview(arguments: ReconstructionArguments, folder: Path) -> ReconstructionPreview | None:
    """The look at held-out images, if there are any; pictures go to `folder/pictures`."""
    return ReconstructionPreview.from_spec(
        arguments.heldout_data,
        arguments.data_resolution,
        arguments.resolution,
        arguments.heldout_images,
        folder=folder / "pictures",
        extractor=arguments.heldout_rfd,
    )


def compile_blocks(*modules: torch.nn.Module, names: tuple[str, ...]) -> None:
    """`torch.compile` of every module whose class has one of `names`: one compilation serves all equal blocks."""
    # Drop path is a hook of the encoder's blocks. Without this guard they would run what was compiled for those of
    # the decoder, which have none, and nothing would be dropped.
    torch._dynamo.config.skip_nnmodule_hook_guards = False
    for root in modules:
        for module in root.modules():
            if type(module).__name__ in names:
                module.compile()


def to_unit_range(images: torch.Tensor, device: torch.device) -> torch.Tensor:
    """uint8 [0, 255] -> float [-1, 1], converted on the device: a byte travels, not four."""
    return images.to(device, non_blocking=True).float().div_(127.5).sub_(1.0)


def checkpoint_identity(
    script: str, arguments: ReconstructionArguments, autoencoder: ModelMixin, data: str, total_batch: int
) -> dict[str, Any]:
    """What a checkpoint must agree with to continue this run."""
    return {
        "script": script,
        "model": {
            "class": type(autoencoder).__name__,
            **{key: value for key, value in autoencoder.config.items() if not key.startswith("_")},
        },
        "seed": arguments.seed,
        "total batch": total_batch,
        "max_train_steps": arguments.max_train_steps,
        "data": data,
    }
