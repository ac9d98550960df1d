"""The complete workflow on OpenMoji: `make demo`."""

import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from tcae_diffusers.arguments import Arguments, exit_with_error, option, parse_arguments

# Steps for DEMO_MINUTES=10; other values scale them. Everything but training takes about four minutes.
DEFAULT_MINUTES = 10.0
TOKENIZER_STEPS = 750
DIT_STEPS = 850


@dataclass
class DemoArguments(Arguments):
    """
    The complete workflow on OpenMoji, in about fifteen minutes on two CPU cores: train a tokenizer, cache its latents,
    train a DiT on them, sample, evaluate, and write a report. An interrupted demo resumes where it stopped.
    """

    group: ClassVar[str] = "Demo"

    minutes: float | None = option(
        None,
        "Scale of the training steps, in approximate minutes on two CPU cores; if unset, the environment variable "
        "DEMO_MINUTES, or 10.",
    )
    output_dir: Path = option(Path("demo_output"), "Folder for everything that the demo writes.", metavar="FOLDER")
    num_samples: int = option(500, "Number of images to generate and compare.")
    seed: int = option(0, "Seed of training and sampling.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.minutes is None:
            self.minutes = float(os.environ.get("DEMO_MINUTES", DEFAULT_MINUTES))
        self._require("minutes", self.minutes > 0, "positive")


@dataclass(frozen=True)
class Stage:
    """
    One command of the demo.

    Args:
        title (`str`): What is shown before it runs.
        module (`str`): Module below `tcae_diffusers`, run with `python -m`.
        arguments (`list[str]`): Its command line.
        result (`Path`): What it leaves behind; a command that was interrupted may exit with 0 without it.
    """

    title: str
    module: str
    arguments: list[str]
    result: Path

    @property
    def command(self) -> list[str]:
        return ["python", "-m", f"tcae_diffusers.{self.module}", *self.arguments]


def stages(folder: Path, minutes: float, num_samples: int, seed: int) -> list[Stage]:
    """The commands of the demo, in order; a reader can run them one by one."""
    scale = minutes / DEFAULT_MINUTES
    tokenizer, latents, dit = folder / "tokenizer", folder / "latents", folder / "dit"
    samples, results = folder / "samples", folder / "results"
    model, pipeline = tokenizer / "model", dit / "pipeline"
    sampling = ["--labels", "openmoji:train", "--num_images", str(num_samples), "--seed", str(seed)]
    sampling += ["--num_inference_steps", "25"]
    guided = ["--pipeline", str(pipeline), "--guidance_scale", "5"]

    def steps(count: int) -> str:
        return str(max(2, round(count * scale)))

    def draw(name: str, title: str, *arguments: str) -> Stage:
        output = samples / name
        command = ["generate", *arguments, *sampling, "--output", str(output)]
        return Stage(title, "evaluation", command, output / "manifest.json")

    return [
        Stage(
            "train the tokenizer: reconstruction and iBOT, jointly",
            "training.train_tcae",
            ["--config", "openmoji32", "--output_dir", str(tokenizer), "--max_train_steps", steps(TOKENIZER_STEPS)]
            + ["--seed", str(seed), "--resume", "latest"],
            model,
        ),
        Stage(
            "encode the training images once, and calibrate the latent",
            "training.cache_latents",
            ["--tokenizer", str(model), "--data", "openmoji:train", "--output_dir", str(latents)],
            latents / "manifest.json",
        ),
        Stage(
            "train a DiT on the latents",
            "training.train_dit",
            ["--config", "openmoji32_dit", "--latents", str(latents), "--tokenizer", str(model)]
            + ["--output_dir", str(dit), "--max_train_steps", steps(DIT_STEPS), "--seed", str(seed)]
            + ["--resume", "latest"],
            pipeline,
        ),
        Stage(
            "measure reconstructions of held-out images",
            "evaluation",
            ["reconstruction", "--autoencoder", str(model), "--data", "openmoji:heldout"]
            + ["--output", str(results / "reconstruction")],
            results / "reconstruction" / "reconstruction.json",
        ),
        draw("dit", "draw samples", *guided),
        draw("untrained-dit", "sample from an untrained DiT, for comparison", *guided, "--baseline", "untrained"),
        draw(
            "class-mean",
            "make the mean image of each class, for comparison",
            *["--baseline", "class-mean", "--data", "openmoji:train", "--resolution", "32"],
        ),
        Stage(
            "measure the samples",
            "evaluation",
            ["generation", "--samples", f"DiT={samples / 'dit'}", f"untrained DiT={samples / 'untrained-dit'}"]
            + [f"class mean={samples / 'class-mean'}", "--reference", "openmoji:train"]
            + ["--output", str(results / "generation")],
            results / "generation" / "generation.json",
        ),
        Stage(
            "write the report",
            "evaluation",
            ["report", "--results", str(results), "--runs", f"tokenizer={tokenizer}", f"DiT={dit}"]
            + ["--title", "TC-AE on OpenMoji: the demo", "--commands", str(folder / "commands.txt")]
            + ["--output", str(folder / "report.html")],
            folder / "report.html",
        ),
    ]


def run_stage(stage: Stage) -> int:
    """Run the command; on Ctrl-C wait while it saves its work, and return what it returned."""
    process = subprocess.Popen([sys.executable, *stage.command[1:]])
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            # The terminal has sent the signal to the command too; it saves at the next step.
            continue


def main(argv: list[str] | None = None) -> None:
    arguments = parse_arguments(DemoArguments, argv)
    # A folder per scale: a longer demo is another run, and nothing of the shorter one is touched.
    folder = arguments.output_dir / f"minutes-{arguments.minutes:g}-seed-{arguments.seed}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        exit_with_error(f"output folder {folder} cannot be created: {error.strerror}")
    signal.signal(signal.SIGTERM, signal.default_int_handler)

    # What was not given is filled in by [`DemoArguments`].
    assert arguments.minutes is not None
    plan = stages(folder, arguments.minutes, arguments.num_samples, arguments.seed)
    (folder / "commands.txt").write_text("".join(shlex.join(stage.command) + "\n" for stage in plan[:-1]))
    started, anew = time.monotonic(), False
    for number, stage in enumerate(plan, start=1):
        head, command = f"[{number}/{len(plan)}] {stage.title}", shlex.join(stage.command)
        done = folder / "done" / f"{number}"
        # What another command made, or what stood before an earlier stage ran again, is not this stage's result.
        if not anew and done.exists() and done.read_text() == command and stage.result.exists():
            say(f"{head}: already done ({stage.result})")
            continue
        anew = True
        say(f"{head}\n      {command}")
        code = run_stage(stage)
        if code != 0 or not stage.result.exists():
            say(f"stopped in step {number} after {minutes_since(started)}; run `make demo` again to resume")
            sys.exit(code if code > 0 else 130)
        done.parent.mkdir(exist_ok=True)
        done.write_text(command)
    say(f"finished after {minutes_since(started)}. The report: {(folder / 'report.html').resolve()}")


def minutes_since(started: float) -> str:
    return f"{(time.monotonic() - started) / 60:.1f} minutes"


def say(text: str) -> None:
    # This is a command: what it prints is its result.
    print(text, flush=True)


if __name__ == "__main__":
    main()
