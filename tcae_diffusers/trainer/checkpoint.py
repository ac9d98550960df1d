"""Checkpoints that exist completely or not at all."""

import errno
import json
import os
import pickle
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from accelerate.utils import gather_object
from diffusers.training_utils import EMAModel
from torch.distributed.checkpoint.api import CheckpointException

from ..files import sha256_of_file, sync
from .given_up_steps import set_aside_steps_after

logger = get_logger(__name__)

MANIFEST = "manifest.json"


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written, is incomplete or damaged, or belongs to another run."""


class CheckpointManager:
    """
    Saves and loads the accelerator's complete state under `folder/step-<n>`.

    A checkpoint is written to a temporary folder beside its place, synced to disk, given a manifest (size and sha256
    of each file), and renamed as the last act; only then are older ones removed. A kill at any moment leaves the
    previous checkpoint as the latest.

    Args:
        accelerator (`Accelerator`): Everything prepared by it or registered with `register_for_checkpointing` is
            saved.
        folder (`Path`): Where the checkpoints go.
        keep (`int`): Number of checkpoints to keep.
        identity (`dict`): What must be equal for a checkpoint to continue this run, such as the model's configuration
            and the seed. Sharded parameters are added to it: their checkpoints have other files.
        options (`dict`): What may change in a run, but not without a word, such as its learning rate.
        averages: Those of weights in its state, whose options may change too.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        folder: Path,
        keep: int,
        identity: dict[str, Any],
        options: dict[str, Any],
        averages: Sequence[EMAModel] = (),
    ):
        self.accelerator = accelerator
        self.folder = Path(folder)
        self.keep = keep
        # Through JSON and back, so that tuples compare equal to the lists of a stored manifest.
        self.identity = json.loads(json.dumps(identity))
        self.options = json.loads(json.dumps(options))
        self.averages = list(averages)
        if accelerator.is_fsdp2:
            self.identity["sharding"] = "FSDP2"

    def save(self, step: int, samples_seen: int) -> Path:
        """
        Args:
            step (`int`): Optimizer steps done.
            samples_seen (`int`): Training images consumed by all ranks so far.

        Raises:
            CheckpointError: if writing failed, for example because the disk is full; earlier checkpoints are intact.
        """
        final = self.folder / f"step-{step:08d}"
        temporary = self.folder / f".writing-step-{step:08d}"
        if final.exists() and _verify(final) is None:
            return final
        if self.accelerator.is_main_process:
            self.folder.mkdir(parents=True, exist_ok=True)
            for leftover in self.folder.glob(".writing-*"):
                shutil.rmtree(leftover)
        self.accelerator.wait_for_everyone()
        error = self._attempt(self.accelerator.save_state, str(temporary))
        # Every rank writes its own random state; all must have before the manifest says what there is.
        problem = self._first_problem(error)
        if problem is None:
            if self.accelerator.is_main_process:
                error = self._attempt(self._finish, temporary, final, step, samples_seen)
            problem = self._first_problem(error)
        if problem is not None:
            if self.accelerator.is_main_process:
                shutil.rmtree(temporary, ignore_errors=True)
            raise CheckpointError(
                f"could not write checkpoint {final}: {problem}. Earlier checkpoints are intact."
            ) from error
        return final

    @staticmethod
    def _attempt(function: Callable[..., object], *arguments: Any) -> BaseException | None:
        try:
            function(*arguments)
        except (OSError, RuntimeError) as error:
            return error
        except CheckpointException as error:
            # Raised on every rank when one cannot write its shards.
            return next(failure for failure, _ in error.failures.values())
        return None

    def _first_problem(self, error: BaseException | None) -> str | None:
        """What went wrong on any rank, told to all of them: one that waited for another would wait for ever."""
        problem = None
        if error is not None:
            full = isinstance(error, OSError) and error.errno == errno.ENOSPC
            hint = (
                "the disk is full; free some space" if full else "check that the folder is writable and has free space"
            )
            problem = f"{error}; {hint}"
        problems = [problem]
        if self.accelerator.num_processes > 1:
            problems = gather_object(problems)
        return next((found for found in problems if found is not None), None)

    def _finish(self, temporary: Path, final: Path, step: int, samples_seen: int) -> None:
        files = {}
        for file in sorted(path for path in temporary.rglob("*") if path.is_file()):
            files[str(file.relative_to(temporary))] = {"size": file.stat().st_size, "sha256": sha256_of_file(file)}
            sync(file)
        manifest = {
            "step": step,
            "samples_seen": samples_seen,
            "identity": self.identity,
            "options": self.options,
            "files": files,
        }
        (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1))
        sync(temporary / MANIFEST)
        sync(temporary)
        if final.exists():
            shutil.rmtree(final)
        os.rename(temporary, final)
        sync(self.folder)
        for old in self._all()[: -self.keep]:
            shutil.rmtree(old)

    def _all(self) -> list[Path]:
        return sorted(self.folder.glob("step-*")) if self.folder.is_dir() else []

    def latest(self) -> Path | None:
        """The newest checkpoint whose manifest verifies, or `None`. Broken ones are named in the log."""
        for candidate in reversed(self._all()):
            problem = _verify(candidate)
            if problem is None:
                return candidate
            logger.warning(f"checkpoint {candidate} is incomplete or damaged and was skipped: {problem}")
        return None

    def load(self, path: Path) -> dict[str, Any]:
        """
        Load a checkpoint into the accelerator's objects.

        Returns:
            `dict`: its manifest, with `step` and `samples_seen`.

        Raises:
            CheckpointError: if it does not exist, is incomplete or damaged, or was written by a run with another
            identity, or with options that make its state another one.
        """
        path = Path(path)
        if not path.is_dir():
            raise CheckpointError(f"checkpoint {path} does not exist; pass --resume latest or a step-* folder.")
        problem = _verify(path)
        if problem is not None:
            raise CheckpointError(f"checkpoint {path} is incomplete or damaged: {problem}. Resume from an older one.")
        manifest = json.loads((path / MANIFEST).read_text())
        for key in sorted(self.identity.keys() | manifest["identity"].keys()):
            stored, current = manifest["identity"].get(key), self.identity.get(key)
            if stored != current:
                raise CheckpointError(
                    f"checkpoint {path} belongs to another run: its {key} is {stored}, this run's is {current}. Use "
                    "the same setting, or start a new run in another output_dir."
                )
        stored = manifest["options"]
        changed = ", ".join(
            f"{name} {stored.get(name)} before and {self.options.get(name)} now"
            for name in sorted(self.options.keys() | stored.keys())
            if stored.get(name) != self.options.get(name)
        )
        _refuse_code(path)
        try:
            self._load_state(path)
        except (RuntimeError, ValueError, KeyError) as error:
            if not changed:
                raise
            raise CheckpointError(
                f"checkpoint {path} does not fit this run, whose options are not those it was written with: {changed}"
            ) from error
        if changed:
            logger.warning(f"options changed since {path} was written, and apply from its step on: {changed}")
        return manifest

    def _load_state(self, path: Path) -> None:
        """accelerate's `load_state`, without what it takes from the run that wrote the checkpoint beside its state."""
        optimizers = self.accelerator._optimizers
        options = [
            [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
            for optimizer in optimizers
        ]
        decays = [average.decay for average in self.averages]
        self.accelerator.load_state(str(path))
        # Optimizers and averages store their options, and those of this run are to apply.
        for optimizer, groups in zip(optimizers, options, strict=True):
            for group, ours in zip(optimizer.param_groups, groups, strict=True):
                group.update(ours)
        for average, decay in zip(self.averages, decays, strict=True):
            average.decay = decay
            # accelerate loads what is registered with it to the CPU.
            average.to(self.accelerator.device)
        # Forward passes so far: with another number of accumulated batches, steps would end between two of them.
        self.accelerator.step = 0

    def resume(self, resume: str | None) -> int:
        """
        Load what `--resume` names and return the number of steps done: 0 without it, or if there is no checkpoint yet.
        Later checkpoints are set aside: the run would take them for its own, or keep damaged ones and not its own.

        Args:
            resume (`str`, *optional*): `"latest"` or the path of a checkpoint.

        Raises:
            CheckpointError: see [`load`].
        """
        path = self.latest() if resume == "latest" else resume
        manifest = None if path is None else self.load(Path(path))
        step = 0 if manifest is None else manifest["step"]
        if resume is not None and self.accelerator.is_main_process:
            set_aside_steps_after(self.folder, step)
        if manifest is not None:
            logger.info(f"resumed from {path}: step {step}, {manifest['samples_seen']} samples seen")
        return step


def _refuse_code(path: Path) -> None:
    """
    What torch unpickles of a sharded checkpoint is not looked at.

    Raises:
        CheckpointError: a file that accelerate would unpickle holds more than tensors and plain values. The hashes in
            the manifest say nothing of who wrote it.
    """
    for file in sorted(path.glob("custom_checkpoint_*.pkl")):
        try:
            torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except (pickle.UnpicklingError, RuntimeError) as error:
            raise CheckpointError(
                f"checkpoint {path} was not written by this program: {file.name} may run code when it is read"
            ) from error


def _verify(path: Path) -> str | None:
    """What is wrong with a checkpoint, or `None`."""
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        files = manifest["files"]
    except (OSError, ValueError, KeyError) as error:
        return f"its manifest cannot be read ({error})"
    for name, expected in files.items():
        file = path / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != expected["size"]:
            return f"{name} has {file.stat().st_size} bytes, expected {expected['size']}"
        if sha256_of_file(file) != expected["sha256"]:
            return f"{name} was modified (sha256 differs)"
    return None
