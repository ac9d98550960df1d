"""Options that every training command has."""

from dataclasses import MISSING, dataclass
from typing import ClassVar, Literal

from ..arguments import Arguments, option


@dataclass
class RunArguments(Arguments):
    """What every training run has."""

    group: ClassVar[str] = "Run"
    presets: ClassVar[str] = "tcae_diffusers.training.configs"

    output_dir: str = option(MISSING, "Folder of the run: checkpoints/, logs/, arguments.yaml and the final model/.")
    resume: str | None = option(
        None, "'latest' continues the newest whole checkpoint of output_dir, or starts if there is none; or a path."
    )
    seed: int = option(0, "All randomness is a function of this seed, the step and the sample.")
    max_train_steps: int = option(100_000, "Optimizer steps.")
    train_batch_size: int = option(16, "Images per process and forward pass.")
    gradient_accumulation_steps: int = option(1, "Forward passes per optimizer step.")
    dataloader_num_workers: int = option(
        0, "Processes that decode and crop images; 0 does it in the training process."
    )
    learning_rate: float = option(5e-4, "Peak learning rate (at a batch of 256 if --scale_lr).")
    scale_lr: bool = option(False, "Multiply the learning rate by total batch / 256.")
    lr_warmup_fraction: float = option(0.1, "Share of the steps over which the learning rate rises linearly.")
    final_learning_rate: float = option(1e-6, "Learning rate at the last step of the cosine schedule.")
    adam_beta1: float = option(0.9, "First moment decay of AdamW.")
    adam_beta2: float = option(0.95, "Second moment decay of AdamW.")
    adam_epsilon: float = option(1e-8, "Epsilon of AdamW.")
    max_grad_norm: float = option(3.0, "Gradients are clipped to this norm.")
    ema_decay: float = option(0.9999, "Decay of the averaged weights; reached gradually, min(decay, (1+n)/(10+n)).")
    max_nonfinite_steps: int = option(20, "Stop after this many skipped steps in a row (loss or gradient not finite).")
    mixed_precision: Literal["no", "fp16", "bf16"] = option("no", "Autocast type; bf16 is slower than fp32 on CPUs.")
    log_steps: int = option(20, "Steps between two log lines and tracker entries.")
    checkpointing_steps: int = option(1000, "Steps between two checkpoints.")
    checkpoints_total_limit: int = option(2, "Checkpoints kept; older ones go once a newer one is whole.")
    report_to: str = option("tensorboard", "Tracker known to accelerate (tensorboard, wandb, trackio), or none.")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("max_train_steps", "train_batch_size", "gradient_accumulation_steps", "log_steps"):
            self._require(name, getattr(self, name) >= 1, "at least 1")
        for name in ("checkpointing_steps", "checkpoints_total_limit", "max_nonfinite_steps"):
            self._require(name, getattr(self, name) >= 1, "at least 1")
        self._require("seed", 0 <= self.seed < 2**32, "at least 0 and below 2**32")
        self._require("dataloader_num_workers", self.dataloader_num_workers >= 0, "0 or more")
        self._require("lr_warmup_fraction", 0 <= self.lr_warmup_fraction <= 1, "between 0 and 1")
        self._require("ema_decay", 0 <= self.ema_decay < 1, "at least 0 and below 1")
        self._require("learning_rate", self.learning_rate > 0, "positive")

    def peak_learning_rate(self, total_batch_size: int) -> float:
        return self.learning_rate * total_batch_size / 256 if self.scale_lr else self.learning_rate
