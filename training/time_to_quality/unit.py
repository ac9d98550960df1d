"""One recipe with one seed: the real training commands in this process, and a clock that stands during checks."""

from __future__ import annotations

import signal
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from tcae_diffusers.data.images.multi_crop import MultiCropTransform
from tcae_diffusers.data.images.sources import scheme_of
from tcae_diffusers.data.images.streamed_images import StreamedImages
from tcae_diffusers.evaluation.results.provenance import provenance, source_commit
from tcae_diffusers.evaluation.results.resumption import folder_content, reference_content, source_content
from tcae_diffusers.trainer.run import reset_accelerate
from tcae_diffusers.trainer.user_errors import RUN_ERRORS, exit_on_user_error
from tcae_diffusers.training import cache_latents, train_dit, train_tcae
from tcae_diffusers.training.bench_arguments import TimeToQualityArguments
from tcae_diffusers.training.cache_arguments import CacheArguments
from tcae_diffusers.training.recorded_settings import local_weights, options_set
from tcae_diffusers.training.time_to_quality.recipes import Recipe, dit_arguments, tokenizer_runs
from tcae_diffusers.training.time_to_quality.records import first_crossing, level_name


class Interrupted(Exception):
    """The unit was asked to stop before it was done."""


class Clock:
    """Seconds that this process trained: CPU seconds of all its threads, and wall seconds. Stands until [`resume`]."""

    def __init__(self) -> None:
        self._cpu = self._wall = 0.0
        self._since: tuple[float, float] | None = None

    def resume(self) -> None:
        self._since = time.process_time(), time.perf_counter()

    def pause(self) -> None:
        if self._since is not None:
            self._cpu, self._wall = self.read()
            self._since = None

    def read(self) -> tuple[float, float]:
        """CPU and wall seconds so far."""
        if self._since is None:
            return self._cpu, self._wall
        cpu, wall = self._since
        return self._cpu + time.process_time() - cpu, self._wall + time.perf_counter() - wall

    def untimed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, during which the clock stands."""

        def call(*args: Any, **kwargs: Any) -> Any:
            self.pause()
            result = function(*args, **kwargs)
            self.resume()
            return result

        return call


@dataclass
class Curve:
    """
    Checks of one measure, and the levels that it is to reach.

    Args:
        rising (`bool`): Whether larger values are better.
        stops (`bool`): Whether training ends once all levels are reached.
        first_step (`int`): Steps of runs before the one that is followed.
    """

    clock: Clock
    levels: list[float]
    rising: bool
    stops: bool
    checks: list[dict[str, float]] = field(default_factory=list)
    first_step: int = 0

    @property
    def is_complete(self) -> bool:
        return all(first_crossing(self.checks, level, self.rising) for level in self.levels)

    def follow(self, log: Callable[..., float]) -> Callable[..., float]:
        """`log(..., step) -> value` of a training command, remembered and not timed."""

        def check(*args: Any) -> float:
            cpu, wall = self.clock.read()
            value = log(*args)
            step = self.first_step + args[-1]
            self.checks.append({"step": step, "cpu_s": cpu, "wall_s": wall, "value": value})
            # Before the first step nobody would catch the signal.
            if self.stops and self.is_complete and args[-1] > 0:
                # As a user would stop it: training ends at the next step boundary.
                signal.raise_signal(signal.SIGTERM)
            return value

        return self.clock.untimed(check)

    def require_end(self, last_step: int) -> None:
        """Raises [`Interrupted`] unless training went to its last step or to the last level."""
        if not (self.stops and self.is_complete) and self.checks[-1]["step"] != self.first_step + last_step:
            raise Interrupted

    def crossings(self, measure: str) -> dict[str, dict[str, float] | None]:
        return {level_name(level, measure): first_crossing(self.checks, level, self.rising) for level in self.levels}


def settings_of(recipe: Recipe, arguments: TimeToQualityArguments, seed: int) -> dict[str, Any]:
    """
    What a record must agree with to stand for the recipe and seed: options, and the content of images and weights that
    they name.

    Raises:
        InputError: images that cannot be read.
    """
    settings: dict[str, Any] = {"psnr": arguments.psnr, "gfd": arguments.gfd}
    runs = tokenizer_runs(recipe, arguments, seed, "")
    tokenizer = runs["tokenizer"]
    assert tokenizer.heldout_data is not None, "recipes without held-out images are refused"
    settings |= {name: {**options_set(run), "output_dir": ""} for name, run in runs.items()}
    commands: dict[str, Any] = dict(runs)
    content = {"heldout_data": source_content(tokenizer.heldout_data)}
    if arguments.gfd is not None:
        folders = dict.fromkeys(("latents", "tokenizer", "output_dir"), "")
        dit = dit_arguments(recipe, arguments, seed, folders)
        settings["dit"], commands["dit"] = options_set(dit), dit
        content["gfd_reference"] = reference_content(arguments.gfd_reference)
    if arguments.gfd is None and scheme_of(tokenizer.train_data) == "stream":
        content["train_data"] = StreamedImages(tokenizer.train_data, MultiCropTransform(1), seed, 0).fingerprint
    else:
        content["train_data"] = source_content(tokenizer.train_data)
    content |= {name: folder_content(path) for name, path in local_weights(commands).items()}
    return {**settings, "content": content}


def measure(recipe: Recipe, arguments: TimeToQualityArguments, seed: int) -> dict[str, Any]:
    """
    Train until all levels are reached, or to the end of the recipe; with `--gfd` the whole tokenizer, its latents and
    a DiT until the distance is reached.

    The clock runs from the first step of the tokenizer, through caching (if a DiT follows), to the last step of the
    DiT. It stands while a quality is measured, and does not count imports and reading the images.

    Returns:
        The record, see [`records`].

    Raises:
        Interrupted: a signal stopped training.
    """
    torch.set_num_threads(1)
    commit, clock = source_commit(), Clock()
    # What cannot be read should not be found out after training.
    settings = settings_of(recipe, arguments, seed)
    with tempfile.TemporaryDirectory(prefix="tcae-time-to-quality-") as folder:
        psnr = Curve(clock, arguments.psnr, rising=True, stops=arguments.gfd is None)
        heldout = _train_tokenizer(recipe, arguments, seed, folder, psnr)
        checks, crossings = {"psnr": psnr.checks}, psnr.crossings("dB")
        measures = {"psnr": f"mean PSNR in dB of the averaged weights over {heldout}"}
        if arguments.gfd is not None:
            gfd = Curve(clock, [arguments.gfd], rising=False, stops=True)
            _cache(recipe, arguments, seed, folder, clock)
            measures["gfd"] = _train_dit(recipe, arguments, seed, folder, gfd)
            checks, crossings = {**checks, "gfd": gfd.checks}, crossings | gfd.crossings("gFD")
    where = {key: value for key, value in provenance().items() if key in ("date", "machine", "versions")}
    return {
        "recipe": recipe.name,
        "flags": recipe.text(),
        "seed": seed,
        "commit": commit,
        "crossings": crossings,
        "measures": measures,
        "checks": checks,
        "settings": settings,
        **where,
    }


def _train_tokenizer(recipe: Recipe, arguments: TimeToQualityArguments, seed: int, folder: str, curve: Curve) -> str:
    """Train it, and say what its checks look at."""
    measured_on = ""
    for resolved in tokenizer_runs(recipe, arguments, seed, folder).values():
        reset_accelerate()
        with exit_on_user_error():
            training = train_tcae.start(resolved)
        preview = training.preview
        assert preview is not None, "recipes without held-out images are refused"
        preview.log = curve.follow(preview.log)  # type: ignore[method-assign]
        training.look_at_heldout_images(0)
        with exit_on_user_error(RUN_ERRORS):
            training.train()
        curve.clock.pause()
        curve.require_end(resolved.max_train_steps)
        count, _, height, width = preview.images.shape
        measured_on = f"{count} images of {resolved.heldout_data} at {width}x{height}"
        if curve.stops and curve.is_complete:
            break
        curve.first_step += resolved.max_train_steps
    return measured_on


def _cache(recipe: Recipe, arguments: TimeToQualityArguments, seed: int, folder: str, clock: Clock) -> None:
    reset_accelerate()
    resolved = tokenizer_runs(recipe, arguments, seed, folder)["tokenizer"]
    dit = dit_arguments(recipe, arguments, seed, dict.fromkeys(("latents", "tokenizer", "output_dir"), ""))
    options = CacheArguments(
        tokenizer=f"{folder}/tokenizer/model",
        output_dir=f"{folder}/latents",
        data=resolved.train_data,
        resolution=resolved.resolution,
        data_resolution=resolved.data_resolution,
        tokens="tokenizer" if dit.repa_weight else None,
        write_statistics=True,
    )
    clock.resume()
    cache_latents.run(options)
    clock.pause()
    if not Path(folder, "latents", "manifest.json").exists():
        raise Interrupted


def _train_dit(recipe: Recipe, arguments: TimeToQualityArguments, seed: int, folder: str, curve: Curve) -> str:
    """Train it, and name the distance."""
    reset_accelerate()
    folders = {"latents": "latents", "tokenizer": "tokenizer/model", "output_dir": "dit"}
    folders = {name: f"{folder}/{path}" for name, path in folders.items()}
    resolved = dit_arguments(recipe, arguments, seed, folders)
    with exit_on_user_error():
        training = train_dit.start(resolved)
    online, average = training.online_frechet, training.averages[0]
    assert online is not None, "--gfd_steps is set"
    online.log = curve.follow(online.log)  # type: ignore[method-assign]
    training.preview.log = curve.clock.untimed(training.preview.log)  # type: ignore[method-assign]
    online.log(training.run.accelerator, average, 0)
    with exit_on_user_error(RUN_ERRORS):
        training.train()
    curve.clock.pause()
    curve.require_end(resolved.max_train_steps)
    return f"{online.name.removeprefix('online/')} against {arguments.gfd_reference}"
