"""Options that every training command has."""

from dataclasses import MISSING, dataclass
from typing import ClassVar, Literal

from ..arguments import Arguments, option


@dataclass
class RunFolderArguments(Arguments):
    """The folder of a run, and how it resumes."""

    group: ClassVar[str] = "Run"

    output_dir: str = option(
        MISSING,
        "Folder of the run: checkpoints/, logs/, arguments.yaml and the result, model/ (a DiT: pipeline/).",
        metavar="FOLDER",
    )
    resume: str | None = option(
        None,
        "Checkpoint to continue: its folder, or 'latest' for the newest complete one in --output_dir, which starts a"
        " new run if there is none.",
        metavar="FOLDER",
    )
    seed: int = option(
        0, "Seed of all random numbers, which depend only on it, the step and the sample.", at_least=0, below=2**32
    )
    checkpointing_steps: int = option(1000, "Steps between two checkpoints.", at_least=1)
    checkpoints_total_limit: int = option(
        2, "Number of checkpoints to keep; older ones are deleted once a newer one is complete.", at_least=1
    )


@dataclass
class StepArguments(Arguments):
    """How many steps a run takes, and how large they are."""

    group: ClassVar[str] = "Steps and batches"

    max_train_steps: int = option(100_000, "Optimiser steps of the whole run.", at_least=1)
    train_batch_size: int = option(16, "Images per process in one forward pass.", at_least=1)
    gradient_accumulation_steps: int = option(1, "Forward passes per optimiser step.", at_least=1)
    max_nonfinite_steps: int = option(
        20,
        "Stop the run after this many steps in a row whose loss or gradient is not finite; each is skipped.",
        at_least=1,
    )


@dataclass
class OptimizerArguments(Arguments):
    """The optimizer and its schedule."""

    group: ClassVar[str] = "Optimiser"

    optimizer: Literal["adamw", "muon"] = option(
        "adamw",
        "Optimiser: AdamW, or Muon for the matrices between the first and the last layer and AdamW for the rest "
        "(discriminators keep AdamW).",
    )
    learning_rate: float = option(
        5e-4, "Peak learning rate; with --scale_lr, that of a total batch of 256 images.", above=0
    )
    scale_lr: bool = option(False, "Multiply the peak learning rate by the total batch size divided by 256.")
    lr_warmup_fraction: float = option(
        0.1,
        "Fraction of the steps during which the learning rate rises linearly from 0.",
        metavar="FRACTION",
        at_least=0,
        at_most=1,
    )
    final_learning_rate: float = option(
        1e-6, "Learning rate at the last step, where the cosine schedule that follows the warm-up ends.", at_least=0
    )
    adam_beta1: float = option(0.9, "Decay rate of AdamW's first moment.", at_least=0, below=1)
    adam_beta2: float = option(0.95, "Decay rate of AdamW's second moment.", at_least=0, below=1)
    adam_epsilon: float = option(1e-8, "Epsilon in the denominator of AdamW's update.", at_least=0)
    muon_momentum: float = option(0.95, "Momentum of Muon.", at_least=0, below=1)
    weight_decay: float = option(0.0, "Weight decay of the optimizer.", at_least=0)
    max_grad_norm: float = option(3.0, "L2 norm to which gradients are clipped.", above=0)
    grad_clipping: Literal["norm", "per_tensor"] = option(
        "norm",
        "What --max_grad_norm limits: the norm of all gradients of a model together, or that of each parameter "
        "tensor, as iBOT's release does.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        is_muon = self.optimizer == "muon"
        self._require_default("muon_momentum", unless=is_muon, omitted="unless --optimizer is muon")

    def peak_learning_rate(self, total_batch_size: int) -> float:
        return self.learning_rate * total_batch_size / 256 if self.scale_lr else self.learning_rate


@dataclass
class EMAArguments(Arguments):
    """The averaged weights, which are saved at the end."""

    group: ClassVar[str] = "Averaged weights"

    ema_decay: float = option(
        0.9999,
        "Decay of the averaged weights that are saved at the end; step n uses min(decay, (1 + n) / (10 + n)).",
        at_least=0,
        below=1,
    )


@dataclass
class ComputeArguments(Arguments):
    """What changes speed and memory."""

    group: ClassVar[str] = "Speed and memory"

    mixed_precision: Literal["no", "fp16", "bf16"] = option(
        "no", "Data type of autocast; on CPUs, bf16 is slower than no autocast."
    )
    gradient_checkpointing: bool = option(
        False, "Recompute activations in the backward pass, which takes less memory and more time."
    )
    compile: bool = option(
        False,
        "Compile the repeated blocks with torch.compile; takes minutes at the start, but speeds up steps on GPUs.",
    )
    dataloader_num_workers: int = option(
        0, "Worker processes that load data; with 0 the training process loads it itself.", at_least=0
    )


@dataclass
class LoggingArguments(Arguments):
    """Logging during training."""

    group: ClassVar[str] = "Logging"

    log_steps: int = option(20, "Steps between log lines, which also go to the tracker.", at_least=1)
    report_to: str = option(
        "tensorboard",
        "Tracker: tensorboard, wandb, trackio or another that accelerate knows; or none.",
        metavar="NAME",
    )


@dataclass
class RunArguments(
    RunFolderArguments, StepArguments, OptimizerArguments, EMAArguments, ComputeArguments, LoggingArguments
):
    """What every training run has."""

    presets: ClassVar[str] = "tcae_diffusers.training.configs"
