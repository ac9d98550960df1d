"""Start and end of a run: folder, accelerator, final model."""

import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration, set_seed
from diffusers import DiffusionPipeline, ModelMixin

from ..files import write_json
from .arguments import RunArguments
from .sharding import refuse_deepspeed
from .trackers import require_tracker


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
            f"output_dir {folder} already holds checkpoints; pass --resume latest to go on, or another output_dir."
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


def start_accelerator(arguments: RunArguments, folder: Path) -> Accelerator:
    """
    Build the accelerator and seed every rank alike (ranks draw alike initial weights).

    Raises:
        InputError: if `accelerate launch` was told to use DeepSpeed.
        ValueError: if `--report_to` names a tracker that is unknown or not installed.
    """
    refuse_deepspeed()
    require_tracker(arguments.report_to)
    accelerator = Accelerator(
        mixed_precision=arguments.mixed_precision,
        gradient_accumulation_steps=arguments.gradient_accumulation_steps,
        log_with=None if arguments.report_to == "none" else arguments.report_to,
        project_config=ProjectConfiguration(project_dir=str(folder), logging_dir=str(folder / "logs")),
    )
    configure_logging(accelerator)
    set_seed(arguments.seed)
    return accelerator


def save_description(accelerator: Accelerator, folder: Path, description: dict[str, Any]) -> None:
    """Write `run.json`: what a report must say about the run beside its arguments, such as its losses in words."""
    if accelerator.is_main_process:
        write_json(folder / "run.json", description)


def save_model(model: ModelMixin | DiffusionPipeline, folder: Path) -> None:
    """`model.save_pretrained(folder)`, replaced as a whole: a reader sees the old model or the new one."""
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
