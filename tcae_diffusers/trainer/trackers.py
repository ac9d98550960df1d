"""The experiment trackers of a run: opened once, continued after a resume, and given its pictures."""

import secrets
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import LoggerType

from ..arguments import save_arguments
from ..data.images.folder import printable_name
from .arguments import RunArguments


def require_tracker(name: str) -> None:
    """
    Raises `ValueError` if the package of a tracker that accelerate knows is not installed: accelerate would train on
    and log nothing. Names that it does not know it refuses itself.
    """
    if name in LoggerType.list() and name != "all" and name not in map(str, get_available_trackers()):
        raise ValueError(f"--report_to {name}: its package is not installed; run pip install {name}, or pass none.")


def start_trackers(accelerator: Accelerator, arguments: RunArguments, name: str, first_step: int) -> None:
    """
    Save the arguments in the run's folder and open the trackers under the project `name`. Call it once nothing can be
    wrong with the arguments any more, a resume included.

    A run that resumes from `first_step` continues its old entry: TensorBoard drops what a killed process logged after
    that step, wandb and trackio (which cannot) are told the run's id again.
    """
    if accelerator.is_main_process:
        save_arguments(arguments, Path(arguments.output_dir) / "arguments.yaml")
    config = {
        # Trackers store text as UTF-8, which a path need not be.
        key: value if isinstance(value, int | float | bool) else printable_name(str(value))
        for key, value in asdict(arguments).items()
    }
    # Trackers run on the main process; the others need no entry, and none of the file that names it.
    own = tracker_options(arguments, first_step) if accelerator.is_main_process else {}
    accelerator.init_trackers(name, config=config, init_kwargs={arguments.report_to: own} if own else {})


def tracker_options(arguments: RunArguments, first_step: int) -> dict[str, Any]:
    """What the tracker of the run is opened with, beside the project's name."""
    folder = Path(arguments.output_dir)
    if arguments.report_to == "tensorboard":
        return {"purge_step": first_step + 1}
    if arguments.report_to not in ("wandb", "trackio"):
        return {}
    (folder / "logs").mkdir(exist_ok=True)
    run_id = _run_id(folder / "logs" / "run_id", is_new=first_step == 0)
    if arguments.report_to == "wandb":
        return {"name": folder.name, "id": run_id, "resume": "allow", "dir": str(folder / "logs")}
    return {"name": f"{folder.name}-{run_id}", "resume": "allow"}


def _run_id(file: Path, is_new: bool) -> str:
    """The id under which online trackers keep the run: a new one, or that of the run which is continued."""
    if is_new or not file.is_file():
        # Not from the seed: two runs of one seed are two runs.
        file.write_text(secrets.token_hex(4) + "\n")
    return file.read_text().strip()


def log_picture(accelerator: Accelerator, name: str, picture: torch.Tensor, step: int) -> None:
    """
    Give a picture to the trackers that show pictures: TensorBoard, wandb and trackio.

    Args:
        picture (`torch.Tensor`): `(3, H, W)`, uint8 or float in [0, 1].
    """
    if picture.is_floating_point():
        picture = (picture * 255).round().clamp(0, 255).to(torch.uint8)
    pixels = picture.permute(1, 2, 0).cpu().numpy()
    for tracker in accelerator.trackers:
        if tracker.name == "tensorboard":
            tracker.writer.add_image(name, pixels, step, dataformats="HWC")
        elif tracker.name == "wandb":
            tracker.log_images({name: [pixels]}, step=step)
        elif tracker.name == "trackio":
            from trackio import Image

            tracker.log({name: Image(pixels)}, step=step)
