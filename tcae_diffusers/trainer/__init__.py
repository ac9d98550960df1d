"""What the training scripts share: arguments, checkpoints, signals, non-finite steps, progress. Loops are theirs."""

from .arguments import RunArguments
from .checkpoint import CheckpointError, CheckpointManager
from .nonfinite import NonFiniteError, NonFiniteGuard
from .progress import TrainingProgress
from .run import prepare_run_folder, save_model, start_accelerator
from .signals import StopSignal
from .trackers import start_trackers

__all__ = [
    "CheckpointError",
    "CheckpointManager",
    "NonFiniteError",
    "NonFiniteGuard",
    "RunArguments",
    "StopSignal",
    "TrainingProgress",
    "prepare_run_folder",
    "save_model",
    "start_accelerator",
    "start_trackers",
]
