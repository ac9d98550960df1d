"""
Training with optimizer state (ZeRO-1) and gradients (ZeRO-2) sharded by DeepSpeed, through accelerate. Parameters and
averages stay whole on each rank.

accelerate lets DeepSpeed step inside `accelerator.backward`. Here it steps in `optimizer.step()`, as without it, so a
loop can read the gradient's norm first and skip a step that is not finite.
"""

import functools
import os
from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from accelerate.utils import convert_outputs_to_fp32

from .arguments import RunArguments

CONFIG = "training/configs/accelerate/deepspeed_zero2.yaml"


def is_deepspeed(accelerator: Accelerator) -> bool:
    return accelerator.distributed_type == DistributedType.DEEPSPEED


def check_zero(accelerator: Accelerator) -> None:
    """
    Raises:
        ValueError: a setting of DeepSpeed that this package does not support.
    """
    plugin = accelerator.state.deepspeed_plugin
    unsupported = {
        # Its keys are many, and few of them are tested: one could round gradients or leave out their norm.
        "deepspeed_config_file": os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "none") != "none",
        # Averages and exports read whole parameters.
        f"zero_stage: {plugin.zero_stage}": plugin.zero_stage not in (1, 2),
        "offload_optimizer_device": plugin.offload_optimizer_device != "none",
        "offload_param_device": plugin.offload_param_device != "none",
        "--mixed_precision fp16 (bf16 works)": accelerator.mixed_precision == "fp16",
    }
    for setting, found in unsupported.items():
        if found:
            raise ValueError(
                f"{setting} is not supported with DeepSpeed; {CONFIG} (ZeRO-2) has settings that are. To shard"
                " parameters too, use FSDP2: training/configs/accelerate/fsdp2.yaml."
            )


def set_batch_and_clipping(accelerator: Accelerator, arguments: RunArguments) -> None:
    """Put the script's own values where DeepSpeed reads them; of accumulation, the launcher's would win otherwise."""
    accelerator.gradient_accumulation_steps = arguments.gradient_accumulation_steps
    accelerator.state.deepspeed_plugin.deepspeed_config.update(
        train_micro_batch_size_per_gpu=arguments.train_batch_size,
        gradient_accumulation_steps=arguments.gradient_accumulation_steps,
        gradient_clipping=arguments.max_grad_norm,
    )


def checkpoint_identity(accelerator: Accelerator) -> dict[str, str]:
    """What must be equal for DeepSpeed to read a checkpoint, each of whose files is one rank's share."""
    if not is_deepspeed(accelerator):
        return {}
    stage, ranks = accelerator.state.deepspeed_plugin.zero_stage, accelerator.num_processes
    return {"sharding": f"DeepSpeed ZeRO-{stage} over {ranks} processes"}


def prepare_zero(
    accelerator: Accelerator, model: torch.nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[torch.nn.Module, "ZeroOptimizer"]:
    """`accelerator.prepare(model, optimizer)`, with the numbers and the order of DistributedDataParallel."""
    if accelerator.mixed_precision == "bf16":
        # DeepSpeed's bf16 would make the weights themselves bf16, and with them their averages.
        del accelerator.state.deepspeed_plugin.deepspeed_config["bf16"]
        autocast = torch.autocast(accelerator.device.type, torch.bfloat16)
        model.forward = convert_outputs_to_fp32(autocast(model.forward))
    engine, _ = accelerator.prepare(model, optimizer)
    accelerator.deepspeed_engine_wrapped = BackwardWithoutStep(engine)
    engine.checkpoint_engine = CheckpointFiles(engine.checkpoint_engine)
    engine.save_checkpoint = functools.partial(save_checkpoint, engine, engine.save_checkpoint)
    return engine, ZeroOptimizer(engine)


class BackwardWithoutStep:
    """In the place of accelerate's `DeepSpeedEngineWrapper`, whose `backward` clips and steps too."""

    def __init__(self, engine: torch.nn.Module):
        self.engine = engine

    def backward(self, loss: torch.Tensor, sync_gradients: bool = True) -> None:
        self.engine.set_gradient_accumulation_boundary(is_boundary=sync_gradients)
        self.engine.backward(loss)

    def get_global_grad_norm(self) -> torch.Tensor:
        """Of the gradients that wait for the step, before clipping; a tensor of shape `()`, inf if not finite."""
        norm = self.engine.optimizer.scaled_global_norm()
        # Releases differ in whether a norm that is not finite is left, made inf or made -1.
        return torch.where(torch.isfinite(norm) & (norm >= 0), norm, torch.inf)


class ZeroOptimizer:
    """
    What a loop needs of an optimizer. `step()` clips and steps where gradients are synchronized.

    `optimizer` is the torch optimizer of this rank's share, which reads `found_inf` of
    [`~tcae_diffusers.trainer.NonFiniteGuard`].
    """

    def __init__(self, engine: torch.nn.Module):
        self.engine = engine

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        return self.engine.optimizer.optimizer

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self.optimizer.param_groups

    def step(self) -> None:
        if self.engine.is_gradient_accumulation_boundary():
            self.engine.step()

    def zero_grad(self) -> None:
        """Nothing: `step()` frees the gradients that it used."""


class CheckpointFiles:
    """
    DeepSpeed's writer and reader of files, in two ways stricter.

    A rank that cannot write goes on to where DeepSpeed's ranks wait for each other, and `error` is raised after that:
    else the others would wait for ever. What is read is tensors and the classes that DeepSpeed puts beside them;
    DeepSpeed's own reader would run any code that a file names.
    """

    def __init__(self, files: Any):
        self.files = files
        self.error: Exception | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.files, name)

    def save(self, state_dict: dict, path: str) -> None:
        try:
            self.files.save(state_dict, path)
        except (OSError, RuntimeError) as error:
            self.error = error

    def load(self, path: str, map_location: Any = None) -> dict:
        from deepspeed.runtime.fp16.loss_scaler import LossScaler
        from deepspeed.runtime.zero.config import ZeroStageEnum
        from deepspeed.utils.tensor_fragment import fragment_address

        with torch.serialization.safe_globals([LossScaler, ZeroStageEnum, fragment_address]):
            return torch.load(path, map_location=map_location, weights_only=True)


def save_checkpoint(engine: torch.nn.Module, save: Callable, folder: str, tag: str) -> None:
    """
    `save(folder, tag)`, DeepSpeed's own.

    Raises:
        OSError, RuntimeError: this rank could not write its files.
    """
    engine.checkpoint_engine.error = None
    # A checkpoint is named when it is read; the file `latest` would be one more that a full disk can fail.
    save(folder, tag, save_latest=False)
    if engine.checkpoint_engine.error is not None:
        raise engine.checkpoint_engine.error
