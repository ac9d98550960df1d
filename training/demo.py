"""The complete workflow on OpenMoji: `make demo`."""

import os
import shlex
import time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from tcae_diffusers.arguments import Arguments, exit_with_error, option, parse_arguments
from tcae_diffusers.errors import InputError
from tcae_diffusers.training.stages import Stage, minutes_since, run_stage, run_stages, say

# Nine categories say little about a picture, such as Objects; of 99 subcategories, a DiT's samples can be told apart.
TRAIN_DATA = "openmoji:train?label=subcategory"
# Steps for DEMO_MINUTES=10; other values scale them. Everything but training takes about six minutes.
DEFAULT_MINUTES = 10.0
COARSE_STEPS = 225
TOKENIZER_STEPS = 400
DECODER_STEPS = 90
DIT_STEPS = 1000


@dataclass
class DemoArguments(Arguments):
    """
    The complete workflow on OpenMoji, in about a quarter of an hour on two CPU cores: train a tokenizer, first with
    coarse patches, cache its latents, adapt its decoder to noisy ones, train a DiT on them, sample, evaluate, and
    write a report. An interrupted demo resumes where it stopped.
    """

    group: ClassVar[str] = "Demo"

    minutes: float | None = option(
        None,
        "Scale of the training steps: at 10, training takes about 11 minutes on two CPU cores. If unset, it is the "
        "environment variable DEMO_MINUTES, or 10.",
        above=0,
    )
    output_dir: Path = option(Path("demo_output"), "Folder for everything that the demo writes.", metavar="FOLDER")
    num_samples: int = option(500, "Number of images to generate and compare.", at_least=1)
    seed: int = option(0, "Seed of training and sampling.", at_least=0)

    def __post_init__(self) -> None:
        # Before the bounds are checked: they hold for the environment too.
        if self.minutes is None:
            given = os.environ.get("DEMO_MINUTES", str(DEFAULT_MINUTES))
            try:
                self.minutes = float(given)
            except ValueError:
                raise InputError(f"The environment variable DEMO_MINUTES is {given!r}; expected a number.") from None
        super().__post_init__()


def stages(folder: Path, minutes: float, num_samples: int, seed: int) -> list[Stage]:
    """The commands of the demo, in order; a reader can run them one by one."""
    scale = minutes / DEFAULT_MINUTES
    coarse, tokenizer, latents, decoder, dit, samples, results = (
        folder / name for name in ("coarse_tokenizer", "tokenizer", "latents", "decoder", "dit", "samples", "results")
    )
    pipeline = dit / "pipeline"
    sampling = ["--labels", TRAIN_DATA, "--num_images", str(num_samples), "--seed", str(seed)]
    sampling += ["--num_inference_steps", "25"]
    coarse_steps, tokenizer_steps = (max(2, round(steps * scale)) for steps in (COARSE_STEPS, TOKENIZER_STEPS))
    # The discriminator, and then the decoder against it, begin later, as in the preset.
    decoder_steps = max(6, round(DECODER_STEPS * scale))
    dit_steps = max(4, round(DIT_STEPS * scale))
    # Autoguidance: away from what the DiT was after a quarter of its steps (docs/experiments.md).
    weaker = dit / "pipelines" / f"step-{dit_steps // 4:08d}"
    guided = ["--pipeline", str(pipeline), "--guidance_scale", "3", "--guidance_transformer", str(weaker)]

    def draw(name: str, title: str, *arguments: str) -> Stage:
        output = samples / name
        command = ["generate", *arguments, *sampling, "--output", str(output)]
        return Stage(title, "evaluation", command, output / "manifest.json")

    return [
        Stage(
            "train a tokenizer with coarse patches, to start from",
            "training.train_tcae",
            ["--config", "openmoji32_coarse", "--output_dir", str(coarse), "--max_train_steps", str(coarse_steps)]
            + ["--seed", str(seed), "--resume", "latest"],
            coarse / "model",
        ),
        Stage(
            "train the tokenizer: reconstruction and iBOT, jointly",
            "training.train_tcae",
            ["--config", "openmoji32", "--output_dir", str(tokenizer), "--max_train_steps", str(tokenizer_steps)]
            + ["--autoencoder", str(coarse / "model"), "--autoencoder_overrides", '{"patch_size": 2}']
            + ["--seed", str(seed), "--resume", "latest"],
            tokenizer / "model",
        ),
        Stage(
            "encode the training images once, and calibrate the latent",
            "training.cache_latents",
            ["--tokenizer", str(tokenizer / "model"), "--data", TRAIN_DATA, "--output_dir", str(latents)],
            latents / "manifest.json",
        ),
        Stage(
            "train the decoder alone, for latents that a DiT draws",
            "training.finetune_decoder",
            ["--config", "openmoji32_decoder", "--autoencoder", str(tokenizer / "model")]
            + ["--output_dir", str(decoder), "--max_train_steps", str(decoder_steps)]
            + ["--discriminator_start_step", str(decoder_steps // 6)]
            + ["--adversarial_start_step", str(decoder_steps // 3)]
            + ["--seed", str(seed), "--resume", "latest"],
            decoder / "model",
        ),
        Stage(
            "train a DiT on the latents",
            "training.train_dit",
            ["--config", "openmoji32_dit", "--latents", str(latents), "--tokenizer", str(decoder / "model")]
            + ["--output_dir", str(dit), "--max_train_steps", str(dit_steps), "--pipeline_steps", str(dit_steps // 4)]
            # Twice the preset's: better in so short a run (docs/experiments.md).
            + ["--learning_rate", "4e-3"]
            + ["--seed", str(seed), "--resume", "latest"],
            pipeline,
        ),
        Stage(
            "measure reconstructions of held-out images",
            "evaluation",
            ["reconstruction", "--autoencoder", str(decoder / "model"), "--data", "openmoji:heldout"]
            + ["--output", str(results / "reconstruction")],
            results / "reconstruction" / "reconstruction.json",
        ),
        draw("dit", "draw samples", *guided),
        draw(
            "untrained-dit",
            "sample from an untrained DiT, for comparison",
            *["--pipeline", str(pipeline), "--guidance_scale", "3", "--baseline", "untrained"],
        ),
        draw(
            "class-mean",
            "make the mean image of each class, for comparison",
            *["--baseline", "class-mean", "--data", TRAIN_DATA, "--resolution", "32"],
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
            ["report", "--results", str(results), "--runs", f"coarse tokenizer={coarse}", f"tokenizer={tokenizer}"]
            + [f"decoder={decoder}", f"DiT={dit}"]
            + ["--title", "TC-AE on OpenMoji: the demo", "--commands", str(folder / "commands.txt")]
            + ["--output", str(folder / "report.html")],
            folder / "report.html",
        ),
    ]


def main(argv: list[str] | None = None) -> None:
    arguments = parse_arguments(DemoArguments, argv)
    # A folder per scale: a longer demo is another run, and nothing of the shorter one is touched.
    folder = arguments.output_dir / f"minutes-{arguments.minutes:g}-seed-{arguments.seed}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        exit_with_error(f"output folder {folder} cannot be created: {error.strerror}")

    # What was not given is filled in by [`DemoArguments`].
    assert arguments.minutes is not None
    plan = stages(folder, arguments.minutes, arguments.num_samples, arguments.seed)
    (folder / "commands.txt").write_text("".join(shlex.join(stage.command) + "\n" for stage in plan[:-1]))
    started = time.monotonic()
    run_stages(plan, folder / "stages", "`make demo`", run_stage)
    say(f"finished after {minutes_since(started)}. The report: {(folder / 'report.html').resolve()}")


if __name__ == "__main__":
    main()
