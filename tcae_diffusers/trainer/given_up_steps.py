"""What a run saved beyond the step from which it is resumed, or started anew in the same folder."""

import re
import shutil
from pathlib import Path

from accelerate.logging import get_logger

logger = get_logger(__name__)

_STEP = re.compile(r"step-(\d{8,})")


def remove_steps_after(folder: Path, step: int) -> None:
    """Remove what `folder` holds of later steps, files and folders `step-<n>...`: they would pass for this run's."""
    numbered = [(path, _STEP.match(path.name)) for path in sorted(folder.glob("step-*"))]
    later = [path for path, match in numbered if match and int(match[1]) > step]
    for path in later:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    if later:
        names = ", ".join(path.name for path in later)
        logger.info(f"removed {names} from {folder}: this run goes on from step {step}")
