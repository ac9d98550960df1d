"""Options of the benchmarks."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from tcae_diffusers.arguments import Arguments, option


@dataclass
class AllBenchArguments(Arguments):
    """What every benchmark takes."""

    group: ClassVar[str] = "Benchmarks"

    names: list[str] = option(
        [],
        "Benchmarks to run; if none is named, all but those that --list marks as run by name only.",
        positional=True,
    )
    list: bool = option(False, "List the benchmarks and stop.")
    seconds: float = option(60.0, "Time in seconds for each benchmark that measures a rate.", at_least=0)
    output: Path | None = option(
        None, "Folder for bench.json, or a path that ends in .json; nothing is written if unset.", metavar="PATH"
    )


@dataclass
class TimeToQualityArguments(Arguments):
    """What time_to_quality takes."""

    group: ClassVar[str] = "time_to_quality"

    recipe: list[str] = option(
        ["openmoji32=openmoji32"],
        "Recipes to compare, the first with all others: NAME=CONFIG[,KEY=VALUE...], where CONFIG is a preset or file"
        " of train_tcae, KEY one of its options, first.KEY one of a run before, whose model the tokenizer starts from,"
        " and dit.KEY an option of train_dit, which aligns with the tokenizer's own tokens if dit.repa_weight is set.",
        metavar="RECIPE",
    )
    seeds: list[int] = option([0, 1, 2], "Seeds with which each recipe is trained.", at_least=0)
    psnr: list[float] = option(
        [20.0, 22.4], "Levels of held-out PSNR in dB up to which the time is measured.", above=0
    )
    gfd: float | None = option(
        None,
        "Level of the Fréchet distance of samples down to which the time is measured, tokenizer, latents and DiT"
        " together; no DiT is trained if unset.",
        above=0,
    )
    dit_config: str = option("openmoji32_dit", "Preset or YAML file of train_dit.", metavar="CONFIG")
    gfd_samples: int = option(256, "Samples for each Fréchet distance.", at_least=8)
    gfd_reference: str = option("openmoji:train", "Real images for the Fréchet distance.", metavar="SOURCE")
    check_steps: int = option(
        50, "Training steps between two checks of quality, whose own time is not counted.", at_least=1
    )
    processes: int = option(
        2,
        "Recipes and seeds that train at the same time, in processes of one thread each; at best one for each core.",
        at_least=1,
    )
    records: Path = option(
        Path("runs/time_to_quality"),
        "Folder with one JSON file for each recipe and seed; those that are there are not trained again.",
        metavar="FOLDER",
    )
    rerun: bool = option(False, "Train recipes and seeds again whose JSON file is there.")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("recipe", "seeds"):
            self._require(name, len(getattr(self, name)) > 0, "one or more")
        self._require("seeds", len(set(self.seeds)) == len(self.seeds), "all different")
        self._require("psnr", bool(self.psnr) or self.gfd is not None, "one or more levels, or omitted with --gfd")


@dataclass
class TrainingCostArguments(Arguments):
    """What training_cost takes, and gpu for the same model."""

    group: ClassVar[str] = "training_cost and gpu"

    preset: list[str] = option([], "ImageNet presets whose cost is counted; all of them if unset.", metavar="PRESET")
    peak_tflops: float = option(
        989.4,
        "Peak rate of a GPU in bf16 in units of 1e12 FLOP/s, without sparsity; the default is that of an H100 SXM,"
        " half of the rate with sparsity in NVIDIA's data sheet.",
        above=0,
    )
    utilisation: float = option(
        0.4,
        "Expected fraction of the peak rate, counting the operations of the model alone.",
        metavar="FRACTION",
        above=0,
        at_most=1,
    )
    gpus: int = option(8, "GPUs that share the batch of a preset.", at_least=1)
    page: Path | None = option(
        None,
        "Markdown file into which the table of training_cost is written, between the comments that name it.",
        metavar="FILE",
    )

    def model_rate(self, macs_per_image: float) -> float:
        """Images/s of one GPU at that utilisation; a multiply-accumulate is two floating-point operations."""
        return self.utilisation * self.peak_tflops * 1e12 / (2 * macs_per_image)


@dataclass
class BenchArguments(AllBenchArguments, TimeToQualityArguments, TrainingCostArguments):
    """
    Measure how fast this machine is, and how fast what is trained on it learns.

    Each benchmark is a module of training/benchmarks/ with a DESCRIPTION and a run(arguments). Absolute rates on a
    shared machine vary, so whatever is compared is measured alternately in one run and reported as a ratio.
    """
