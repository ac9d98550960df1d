"""Training with parameters sharded over ranks (FSDP2, through accelerate): how it differs from unsharded training."""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch
import torch.distributed.checkpoint as dcp
from accelerate import Accelerator, DistributedType, init_empty_weights
from accelerate.utils import convert_outputs_to_fp32, parse_flag_from_env
from diffusers import ModelMixin
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, StateDictType
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint

from ..data.whole_tensor import whole_tensor
from ..errors import InputError

CONFIG = "training/configs/accelerate/fsdp2.yaml"


class Stateful(Protocol):
    def state_dict(self) -> dict: ...

    def load_state_dict(self, state: dict) -> None: ...


def refuse_deepspeed() -> None:
    """
    To be called before accelerate starts, which would first ask for DeepSpeed to be installed.

    Raises:
        InputError: `accelerate launch` was told to use DeepSpeed.
    """
    if parse_flag_from_env("ACCELERATE_USE_DEEPSPEED"):
        raise InputError(
            "the launch configuration selects DeepSpeed, which is not supported. Use FSDP2 to shard a model over "
            f"GPUs: accelerate launch --config_file {CONFIG}. To keep a full copy on each GPU, use "
            "training/configs/accelerate/ddp.yaml instead."
        )


def check_sharding(accelerator: Accelerator, recomputing: Mapping[str, bool]) -> None:
    """
    Args:
        recomputing (mapping): Options that recompute activations, or that recomputing would break, and whether they
            are used: `fsdp_activation_checkpointing` excludes each.

    Raises:
        ValueError: a setting of FSDP that this package does not support.
    """
    if accelerator.distributed_type != DistributedType.FSDP:
        return
    plugin = accelerator.state.fsdp_plugin
    unsupported = {
        f"fsdp_version: {plugin.fsdp_version}": plugin.fsdp_version != 2,
        # One rank would write while the others wait inside a gather: a full disk would never end.
        "fsdp_state_dict_type: FULL_STATE_DICT": plugin.state_dict_type != StateDictType.SHARDED_STATE_DICT,
        # Buffers that are saved with the model, such as DiT's positions, have no shards to broadcast into.
        "fsdp_cpu_ram_efficient_loading: true": plugin.cpu_ram_efficient_loading,
        # New in accelerate 1.15.
        "fsdp_activation_checkpointing_offload: true": getattr(plugin, "activation_checkpointing_offload", False),
        "fsdp_offload_params: true": isinstance(plugin.cpu_offload, CPUOffloadPolicy),
        "--mixed_precision fp16 (bf16 works)": accelerator.mixed_precision == "fp16",
    }
    for setting, found in unsupported.items():
        if found:
            raise ValueError(f"{setting} is not supported with FSDP; {CONFIG} has supported settings.")
    for option, used in recomputing.items():
        if used and plugin.activation_checkpointing:
            raise ValueError(f"fsdp_activation_checkpointing: true and {option} cannot be combined; choose one.")


DISCRIMINATOR = "accelerate shards a single model with FSDP, and the discriminator is a second one"


def require_whole_parameters(accelerator: Accelerator, reason: str = DISCRIMINATOR) -> None:
    """
    For what cannot be trained with FSDP, such as a discriminator: accelerate prepares one model and one optimizer.

    Args:
        reason (`str`): Why; the beginning of the message.

    Raises:
        InputError: parameters are sharded over ranks.
    """
    if accelerator.distributed_type == DistributedType.FSDP:
        raise InputError(
            f"{reason}. Use "
            "DistributedDataParallel: choose multi-GPU without FSDP in `accelerate config`, or pass --multi_gpu or "
            "--config_file training/configs/accelerate/ddp.yaml to `accelerate launch`."
        )


def prepare(
    accelerator: Accelerator, model: torch.nn.Module, optimizer: torch.optim.Optimizer, units: Sequence[str]
) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    """
    `accelerator.prepare(model, optimizer)`, with the numbers of DistributedDataParallel under FSDP2 too.

    Args:
        model (`nn.Module`): On FSDP2 it is sharded in place.
        units (sequence of `str`):
            Classes of the modules to gather one at a time; those that `model` has are used. The others are gathered
            when `model` is called and stay gathered until its gradients are computed.
    """
    if accelerator.is_fsdp2:
        plugin = accelerator.state.fsdp_plugin
        if plugin.transformer_cls_names_to_wrap is None:
            present = {type(module).__name__ for module in model.modules()}
            plugin.transformer_cls_names_to_wrap = [name for name in units if name in present]
        if plugin.activation_checkpointing:
            _recompute_activations(model, plugin.transformer_cls_names_to_wrap)
            # accelerate would wrap the units in modules, which renames parameters that are matched by name.
            plugin.activation_checkpointing = False
        # accelerate's policy for bf16 would round the inputs too, timesteps among them, and sum gradients in bf16.
        plugin.mixed_precision_policy = MixedPrecisionPolicy()
        if accelerator.mixed_precision != "no":
            model.forward = convert_outputs_to_fp32(accelerator.autocast()(model.forward))
    return accelerator.prepare(model, optimizer)


def _recompute_activations(model: torch.nn.Module, units: Sequence[str]) -> None:
    """Inside each unit of FSDP: its parameters are gathered once for recomputation and gradients together. Around a
    unit, where `--gradient_checkpointing` recomputes, they are gathered for each."""
    for module in model.modules():
        if type(module).__name__ in units:
            module.forward = functools.partial(checkpoint, module.forward, use_reentrant=False)


def start_optimizer_state(optimizer: torch.optim.Optimizer) -> None:
    """
    Give AdamW and Muon the state that they otherwise make at the first update of each parameter. A sharded checkpoint
    is read into the state of all parameters, so one written while some were frozen could not be read without.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if group.get("matrices"):
                optimizer.state[parameter] = {"momentum_buffer": torch.zeros_like(parameter)}
                continue
            optimizer.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                "exp_avg": torch.zeros_like(parameter, memory_format=torch.preserve_format),
                "exp_avg_sq": torch.zeros_like(parameter, memory_format=torch.preserve_format),
            }


def is_sharded(model: torch.nn.Module) -> bool:
    """Whether parameters of `model`, which may be a part of what was prepared, lie in shards."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def model_class(model: ModelMixin) -> type[ModelMixin]:
    """The class as it was before sharding, which replaces it by a subclass."""
    return next(base for base in type(model).__mro__ if not issubclass(base, FSDPModule))


def whole_copy(model: ModelMixin, parameters: Sequence[torch.Tensor]) -> ModelMixin:
    """
    A plain model like the sharded `model`, in eval mode, on each rank. All ranks must call this.

    Args:
        parameters (sequence of `torch.Tensor`): Its parameters, gathered; in the order of `model.parameters()`.
    """
    with init_empty_weights():
        copy = model_class(model).from_config(model.config)
    state = model.state_dict()
    names = [name for name, _ in model.named_parameters()]
    state.update({name: whole_tensor(value.detach()) for name, value in zip(names, parameters, strict=True)})
    copy.load_state_dict(state, assign=True)
    return copy.to(parameters[0].device).eval()


def register_averages(accelerator: Accelerator, averages: Sequence[Stateful]) -> None:
    """
    Make averages of sharded parameters part of the checkpoints: accelerate saves what is registered with it from the
    main process alone, which holds one shard. Here each rank writes its own, and any number of ranks reads them.
    """

    def save(models: list, weights: list, folder: str) -> None:
        states = {str(index): average.state_dict() for index, average in enumerate(averages)}
        dcp.save(states, storage_writer=dcp.FileSystemWriter(Path(folder) / "averages"))

    def load(models: list, folder: str) -> None:
        states = {str(index): average.state_dict() for index, average in enumerate(averages)}
        dcp.load(states, storage_reader=dcp.FileSystemReader(Path(folder) / "averages"))
        for index, average in enumerate(averages):
            average.load_state_dict(states[str(index)])

    accelerator.register_save_state_pre_hook(save)
    accelerator.register_load_state_pre_hook(load)
