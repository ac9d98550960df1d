"""What the training loop costs besides forward, backward and optimizer step, on the CPU preset."""

from __future__ import annotations

import itertools
import logging
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tcae_diffusers.training.bench_arguments import BenchArguments

if TYPE_CHECKING:
    import torch

    from tcae_diffusers.training.train_tcae import TokenizerTraining

DESCRIPTION = "tokenizer training on the CPU preset: data, logging, averages and checkpoints against the bare step"

PRESET = "openmoji32"


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
    from tcae_diffusers.metrics.latency import time_in_turns
    from tcae_diffusers.trainer.trackers import start_trackers
    from tcae_diffusers.training import train_tcae
    from tcae_diffusers.training.single_steps import SteppedTraining
    from tcae_diffusers.training.tokenizer_arguments import TokenizerArguments

    with tempfile.TemporaryDirectory(prefix="tcae-bench-") as folder:
        argv = ["--config", PRESET, "--output_dir", f"{folder}/run", "--max_train_steps", "100000"]
        arguments = parse_arguments(TokenizerArguments, argv)
        stepped = SteppedTraining(train_tcae.start, arguments)
        training, progress, batches = stepped.training, stepped.progress, stepped.batches
        run, accelerator = training.run, training.run.accelerator
        logging.getLogger("tcae_diffusers").setLevel(logging.WARNING)
        start_trackers(accelerator, arguments, "train_tcae", 0)
        in_memory = [next(batches) for _ in range(4)]
        done, rates = itertools.count(), {"train/learning_rate": arguments.learning_rate}

        def script_step() -> None:
            step = next(done)
            stepped.step(step)
            progress.step(step + 1, rates)

        bare_done = itertools.count()

        def bare_step() -> None:
            step = next(bare_done)
            _bare_step(training, in_memory[step % 4], step)

        times = time_in_turns({"script": script_step, "bare": bare_step}, accelerator.device, 0.9 * bench.seconds)
        steps = len(times["script"])
        script, bare = (statistics.median(times[name]) for name in ("script", "bare"))
        # The parts, each on its own: their sum is what the script adds to a step.
        _, metrics = training.compute_loss(training.forward(in_memory[0], 0, 0), 0)
        metrics = {name: value.detach() for name, value in metrics.items()}
        logged = itertools.count(1)

        def log() -> None:
            progress.add(metrics)
            progress.step(next(logged), {})

        parts = {
            "data": lambda: next(batches),
            "EMA": lambda: training.ema.step(training.autoencoder.parameters()),
            "teacher": lambda: training.after_step(steps, torch.zeros(())),
            "logging": log,
        }
        # As many as from one log entry to the next.
        of_parts = time_in_turns(parts, accelerator.device, least_rounds=arguments.log_steps)
        started = time.perf_counter()
        run.save_checkpoint(steps)
        checkpoint = time.perf_counter() - started
        size = sum(file.stat().st_size for file in Path(folder).glob("run/checkpoints/step-*/*"))
        accelerator.end_training()

    share = {name: statistics.median(of_parts[name]) / bare for name in ("data", "EMA", "teacher")}
    # Rare and expensive, so the cost is spread over the steps in between.
    share["logging"] = statistics.fmean(of_parts["logging"]) / bare
    share["checkpoints"] = checkpoint / bare / arguments.checkpointing_steps
    script += bare * (share["logging"] + share["checkpoints"])
    table: dict[str, Any] = {"threads": float(torch.get_num_threads()), "steps": float(steps)}
    table["bare step (s)"] = bare
    table["script's step (s)"] = script
    table |= {f"{name} / bare step": value for name, value in share.items()}
    table["data + logging + EMA + checkpoints / bare step (goal: below 0.05)"] = sum(
        share[name] for name in ("data", "logging", "EMA", "checkpoints")
    )
    table["one checkpoint (s)"] = checkpoint
    table["one checkpoint (MB)"] = size / 1e6
    table["images/s of the script"] = run.total_batch / script
    table["images/s of a bare loop over tensors in memory"] = run.total_batch / bare
    table["script / bare loop (goal: at least 0.9)"] = bare / script
    return table
