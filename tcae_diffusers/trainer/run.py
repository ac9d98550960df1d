"""A run from its folder and accelerator to its final model: what every training script begins and ends with."""

import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import GradientAccumulationPlugin, ProjectConfiguration, set_seed
from diffusers import DiffusionPipeline, ModelMixin
from diffusers.training_utils import EMAModel

from ..data.sample_randomness import slot_generators
from ..errors import InputError
from ..files import write_json
from ..objectives.schedules import cosine_with_warmup
from .arguments import RunArguments
from .checkpoint import CheckpointManager
from .given_up_steps import GIVEN_UP, set_aside, set_aside_steps_after
from .nonfinite import NonFiniteGuard
from .sharding import is_sharded, model_class, refuse_deepspeed, register_averages
from .trackers import require_tracker, start_trackers
from .user_errors import RUN_ERRORS, exit_on_user_error

logger = get_logger(__name__)

# Options that change nothing about what is trained: where something lies whose content decides, and how often the run
# saves and logs.
_WITHOUT_EFFECT = {
    *("output_dir", "resume", "train_data", "latents", "tokenizer"),
    *("checkpointing_steps", "checkpoints_total_limit", "log_steps", "report_to", "dataloader_num_workers"),
}

# Folders of a run that hold something of several of its steps, beside the checkpoints.
SAVED_BY_STEP = ("ema_snapshots", "pipelines", "pictures")
# Folders of what a run leaves at its end, under names that the next run in the folder may not have.
SAVED_AT_THE_END = ("ema",)


def prepare_run_folder(arguments: RunArguments) -> Path:
    """
    Make the run's folder and check that writing into it works before anything slow begins.

    Raises:
        OSError: if it cannot be made or written; the message names it.
        FileExistsError: if it holds another run and `--resume` was not given.
    """
    folder = Path(arguments.output_dir)
    if any((folder / "checkpoints").glob("step-*")) and arguments.resume is None:
        raise FileExistsError(
            f"output_dir {folder} already holds checkpoints; pass --resume latest to resume, or choose another "
            "output_dir."
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise OSError(f"output_dir {folder} cannot be written: {error.strerror or error}.") from error
    return folder


@contextmanager
def discard_new_folder_on_error(folder: str | Path) -> Iterator[None]:
    """Remove `folder` again if it did not exist before and what runs inside fails: no run, no trace of one."""
    folder = Path(folder)
    existed = folder.exists()
    try:
        yield
    except BaseException:
        if not existed:
            shutil.rmtree(folder, ignore_errors=True)
        raise


def configure_logging(accelerator: Accelerator) -> None:
    """Show the scripts' own messages, from the main process of each machine."""
    logging.basicConfig(
        format="%(asctime)s %(name)s: %(message)s",
        datefmt="%H:%M:%S",
        level=logging.INFO if accelerator.is_local_main_process else logging.WARNING,
    )
    # accelerate reports every file that it saves; the checkpoint's own line is enough.
    logging.getLogger("accelerate").setLevel(logging.WARNING)


def reset_accelerate() -> None:
    """For a further command in the same process, which begins with an accelerator of its own."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def start_accelerator(arguments: RunArguments) -> Accelerator:
    """
    Build the accelerator in the run's folder and seed every rank alike (ranks draw alike initial weights).

    Raises:
        OSError: see [`prepare_run_folder`].
        InputError: if `accelerate launch` was told to use DeepSpeed, or another precision than the run's.
        ValueError: if `--report_to` names a tracker that is unknown or not installed.
    """
    folder = prepare_run_folder(arguments)
    refuse_deepspeed()
    require_tracker(arguments.report_to)
    _refuse_settings_of_accelerate(arguments)
    accelerator = Accelerator(
        mixed_precision=arguments.mixed_precision,
        # The bare number would give way to an environment variable of `accelerate launch`, and the steps of the loop
        # are counted by the option.
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=arguments.gradient_accumulation_steps),
        log_with=None if arguments.report_to == "none" else arguments.report_to,
        project_config=ProjectConfiguration(project_dir=str(folder), logging_dir=str(folder / "logs")),
    )
    configure_logging(accelerator)
    set_seed(arguments.seed)
    return accelerator


def _refuse_settings_of_accelerate(arguments: RunArguments) -> None:
    """
    Raises:
        InputError: `accelerate launch`, or its configuration, asks for something that the options of the run decide,
            and that they decide otherwise.
    """
    for name, option in (("MIXED_PRECISION", "mixed_precision"), ("GRADIENT_ACCUMULATION_STEPS",) * 2):
        option, asked = option.lower(), os.environ.get(f"ACCELERATE_{name}")
        ours = getattr(arguments, option)
        # What accelerate writes where nobody asked for anything.
        if asked not in (None, "", "no", "1", str(ours)):
            raise InputError(
                f"accelerate launch was given {option} {asked}, and this run has --{option} {ours}; pass "
                f"--{option} {asked} behind the name of the script, or take it out of accelerate's configuration"
            )


@dataclass
class Run:
    """
    What the training loop needs from a run, ready to continue from `first_step`.

    Args:
        name (`str`): Of the script, for trackers and checkpoints.
        total_batch (`int`): Images per optimizer step, over all ranks and accumulated batches.
        first_step (`int`): Optimizer steps done before.
    """

    name: str
    arguments: RunArguments
    folder: Path
    accelerator: Accelerator
    guard: NonFiniteGuard
    checkpoints: CheckpointManager
    total_batch: int
    first_step: int

    def save_checkpoint(self, step: int) -> None:
        """Write the checkpoint of `step` optimizer steps."""
        self.checkpoints.save(step, samples_seen=step * self.total_batch)

    def learning_rate(self, step: int) -> float:
        """Of the model at an optimizer step; a function of the step alone, so a resume needs nothing else."""
        arguments, total = self.arguments, self.arguments.max_train_steps
        return cosine_with_warmup(
            step,
            total,
            arguments.peak_learning_rate(self.total_batch),
            arguments.final_learning_rate,
            round(arguments.lr_warmup_fraction * total),
        )

    def first_slot(self, micro_step: int) -> int:
        """Place of this rank's first image of a forward pass within the global batch of its optimizer step."""
        accelerator = self.accelerator
        place = micro_step * accelerator.num_processes + accelerator.process_index
        return place * self.arguments.train_batch_size

    def generators(self, step: int, micro_step: int, count: int) -> list[torch.Generator]:
        """New ones for the `count` images of this rank's forward pass, see [`slot_generators`]."""
        return slot_generators(self.arguments.seed, step, self.first_slot(micro_step), count)


def total_batch_size(arguments: RunArguments, accelerator: Accelerator) -> int:
    """Images per optimizer step, over all ranks and accumulated batches."""
    return arguments.train_batch_size * accelerator.num_processes * arguments.gradient_accumulation_steps


def begin_run(
    name: str,
    arguments: RunArguments,
    accelerator: Accelerator,
    model: ModelMixin,
    averages: Sequence[Any],
    state: Sequence[Any],
    identity: dict[str, Any],
) -> Run:
    """
    Make what a run holds beside its prepared models and optimizers part of its checkpoints, and load the one that
    `--resume` names.

    Args:
        model: What is trained, after it was prepared.
        averages: Of its weights; the first is what the result is made of.
        state: Further objects with `state_dict` and `load_state_dict`.
        identity (`dict`): What a checkpoint must agree with to continue this run, beside what every run has: the
            configuration of `model`, seed, steps and batch.

    Raises:
        CheckpointError: the checkpoint is missing, incomplete, or of another run.
    """
    folder = Path(arguments.output_dir)
    guard = NonFiniteGuard(accelerator, arguments.max_nonfinite_steps)
    if is_sharded(model):
        register_averages(accelerator, averages)
        accelerator.register_for_checkpointing(guard, *state)
    else:
        first, *others = averages
        accelerator.register_for_checkpointing(first, guard, *others, *state)
    total_batch = total_batch_size(arguments, accelerator)
    configuration = {key: value for key, value in model.config.items() if not key.startswith("_")}
    shared = {
        "script": name,
        "model": {"class": model_class(model).__name__, **configuration},
        "seed": arguments.seed,
        "optimizer": arguments.optimizer,
        "total batch": total_batch,
        "max_train_steps": arguments.max_train_steps,
    }
    options = {name: value for name, value in asdict(arguments).items() if name not in _WITHOUT_EFFECT}
    checkpoints = CheckpointManager(
        accelerator,
        folder / "checkpoints",
        arguments.checkpoints_total_limit,
        {**shared, **identity},
        options,
        [each for each in (*averages, *state) if isinstance(each, EMAModel)],
    )
    first_step = checkpoints.resume(arguments.resume)
    if accelerator.is_main_process:
        for saved in SAVED_BY_STEP:
            set_aside_steps_after(folder / saved, first_step)
        if first_step == 0:
            for saved in SAVED_AT_THE_END:
                set_aside(folder / saved, [path for path in (folder / saved).glob("*") if path.name != GIVEN_UP])
            # A run without one would leave that of another beside its model.
            set_aside(folder, [path for path in [folder / "discriminator"] if path.exists()])
    return Run(name, arguments, folder, accelerator, guard, checkpoints, total_batch, first_step)


class Training(Protocol):
    """What a script has built: its run, itself in words, and the way to the end."""

    run: Run

    def describe(self) -> dict[str, Any]:
        """What a report must say about the run beside its arguments: at least `losses` and `summary`, one line."""
        ...

    def train(self) -> None: ...


def launch(arguments: RunArguments, start: Callable[[Any], Training]) -> None:
    """
    The work of a training command: `start` with its arguments, describe the run in its folder, train.

    What the user got wrong ends in one line and exit code 2: until `start` is done any `ValueError`, afterwards only
    what a run may meet through no defect of ours. A folder that did not exist goes again if nothing could start.
    """
    with exit_on_user_error(), discard_new_folder_on_error(arguments.output_dir):
        training = start(arguments)
        run = training.run
        start_trackers(run.accelerator, arguments, run.name, run.first_step)
        description = training.describe()
        if run.accelerator.is_main_process:
            write_json(run.folder / "run.json", description)
    logger.info(
        f"{description['summary']}; batch {run.total_batch}, steps {run.first_step} to {arguments.max_train_steps};"
        f" {description['losses']}"
    )
    with exit_on_user_error(RUN_ERRORS):
        training.train()


def save_model(model: ModelMixin | DiffusionPipeline, folder: Path) -> None:
    "`model.save_pretrained(folder)`, replaced atomically: a reader sees either the old model or the new one."
    for leftover in folder.parent.glob(f".{folder.name}-*"):
        # Of a process that was killed here.
        shutil.rmtree(leftover)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    model.save_pretrained(temporary)
    os.chmod(temporary, 0o755)
    if folder.exists():
        old = Path(tempfile.mkdtemp(prefix=f".{folder.name}-old-", dir=folder.parent))
        os.rename(folder, old / "model")
        os.rename(temporary, folder)
        shutil.rmtree(old)
    else:
        os.rename(temporary, folder)
