"""What the training loop costs besides forward, backward and optimizer step, on the CPU preset."""

from __future__ import annotations

import logging
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tcae_diffusers.training.bench_arguments import BenchArguments

if TYPE_CHECKING:
    import torch

    from tcae_diffusers.training.train_tcae import TokenizerTraining

DESCRIPTION = "tokenizer training on the CPU preset: data, logging, averages and checkpoints against the bare step"

PRESET = "openmoji32"


class _Clock:
    """Seconds of each call, by part. Medians, since a shared machine gives single calls any length."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = defaultdict(list)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[name].append(time.perf_counter() - started)

    def median(self, name: str) -> float:
        return statistics.median(self.seconds[name])


def _bare_step(training: TokenizerTraining, batch: dict[str, torch.Tensor], step: int) -> None:
    """Forward, backward, clipping and optimizer step on tensors in memory; nothing else."""
    loss, _ = training.compute_loss(training.forward(batch, step, 0), step)
    accelerator, side = training.run.accelerator, training.side
    accelerator.backward(loss)
    accelerator.clip_grad_norm_(side.model.parameters(), training.arguments.max_grad_norm)
    side.optimizer.step()
    side.optimizer.zero_grad()


def run(bench: BenchArguments) -> dict[str, Any]:
    """One step of the script and one bare step in turns, for `bench.seconds`; then the parts of the difference."""
    import torch

    from tcae_diffusers.arguments import parse_arguments
    from tcae_diffusers.trainer.fit import take_step
    from tcae_diffusers.trainer.image_batches import image_loader
    from tcae_diffusers.trainer.progress import TrainingProgress
    from tcae_diffusers.trainer.run import reset_accelerate
    from tcae_diffusers.trainer.trackers import start_trackers
    from tcae_diffusers.training import train_tcae

    reset_accelerate()
    with tempfile.TemporaryDirectory(prefix="tcae-bench-") as folder:
        argv = ["--config", PRESET, "--output_dir", f"{folder}/run", "--max_train_steps", "100000"]
        training = train_tcae.start(parse_arguments(train_tcae.TokenizerArguments, argv))
        logging.getLogger("tcae_diffusers").setLevel(logging.WARNING)
        arguments, run, hooks = training.arguments, training.run, training.hooks()
        accelerator, first_side = run.accelerator, [training.side]
        start_trackers(accelerator, arguments, "train_tcae", 0)
        progress = TrainingProgress(
            accelerator, "bench", arguments.max_train_steps, 0, run.total_batch, arguments.log_steps
        )
        progress.bar.disable = True
        training.side.model.train()
        batches = iter(image_loader(training.dataset, arguments, accelerator, 0))
        in_memory = [next(batches) for _ in range(4)]
        clock = _Clock()
        deadline, step, warm = time.perf_counter() + 0.9 * bench.seconds, 0, 2
        while step < warm + 2 or time.perf_counter() < deadline:
            if step == warm:
                clock = _Clock()
            with clock.part("script"):
                training.schedule(step)
                skipped = take_step(run, batches, first_side, training.backward, hooks, progress, step)
                training.after_step(step, skipped)
                progress.step(step + 1, {"train/learning_rate": arguments.learning_rate})
            with clock.part("bare"):
                _bare_step(training, in_memory[step % 4], step)
            step += 1
        steps = step - warm

        # The parts, each on its own: their sum is what the script adds to a step.
        bare = clock.median("bare")
        parts = _Clock()
        loss, metrics = training.compute_loss(training.forward(in_memory[0], 0, 0), 0)
        metrics = {name: value.detach() for name, value in metrics.items()}
        # As many as from one log entry to the next.
        for number in range(arguments.log_steps):
            with parts.part("data"):
                next(batches)
            with parts.part("EMA"):
                training.ema.step(training.autoencoder.parameters())
            with parts.part("teacher"):
                training.after_step(step, skipped)
            with parts.part("logging"):
                progress.add(metrics)
                progress.step(number + 1, {})
        with parts.part("checkpoint"):
            run.save_checkpoint(step)
        size = sum(file.stat().st_size for file in Path(folder).glob("run/checkpoints/step-*/*"))
        accelerator.end_training()
        del loss

    def per_step(name: str) -> float:
        return parts.median(name) / bare

    share = {name: per_step(name) for name in ("data", "EMA", "teacher")}
    # Rare and expensive, so the cost is spread over the steps in between.
    share["logging"] = sum(parts.seconds["logging"]) / arguments.log_steps / bare
    share["checkpoints"] = per_step("checkpoint") / arguments.checkpointing_steps
    script = clock.median("script") + bare * (share["logging"] + share["checkpoints"])
    table: dict[str, Any] = {"threads": float(torch.get_num_threads()), "steps": float(steps)}
    table["bare step (s)"] = bare
    table["script's step (s)"] = script
    table |= {f"{name} / bare step": value for name, value in share.items()}
    table["data + logging + EMA + checkpoints / bare step (goal: below 0.05)"] = sum(
        share[name] for name in ("data", "logging", "EMA", "checkpoints")
    )
    table["one checkpoint (s)"] = parts.median("checkpoint")
    table["one checkpoint (MB)"] = size / 1e6
    table["images/s of the script"] = run.total_batch / script
    table["images/s of a bare loop over tensors in memory"] = run.total_batch / bare
    table["script / bare loop (goal: at least 0.9)"] = bare / script
    return table
