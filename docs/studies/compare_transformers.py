"""
Do both transformers learn what the labels mean? DiT and TC-DiT of one size against an unconditional DiT and against
themselves untrained, on the cached latents of one tokenizer, over several seeds.

    python docs/studies/compare_transformers.py --tokenizer runs/tokenizer/model --latents runs/latents \
        --output_dir runs/compare_transformers --seeds 0 1 2

Every step is a command of this package and is skipped once done, so an interrupted study goes on where it was. In
OUTPUT_DIR: `comparison.md` (the table), `comparison.json`, `curves.png`, and `samples.png`, of the first seed.
"""

import argparse
import json
import statistics
from pathlib import Path

from study_commands import command, gather_grids, slug

from tcae_diffusers.evaluation.report.training_curves import read_scalars

# Name of a run -> its options of train_dit.
RUNS = {
    "DiT": ["--transformer", "dit"],
    "TC-DiT": ["--transformer", "tc-dit"],
    "unconditional": ["--transformer", "dit", "--unconditional"],
}
# Name of a sample set -> the run it is drawn from, its guidance scale, further options of generate. The comparison is
# the one without guidance; with guidance is how one would look at the pictures.
SAMPLES = {
    "DiT": ("DiT", 1.0, []),
    "TC-DiT": ("TC-DiT", 1.0, []),
    "unconditional": ("unconditional", 1.0, []),
    "DiT untrained": ("DiT", 1.0, ["--baseline", "untrained"]),
    "TC-DiT untrained": ("TC-DiT", 1.0, ["--baseline", "untrained"]),
    "DiT guided": ("DiT", 1.5, []),
    "TC-DiT guided": ("TC-DiT", 1.5, []),
}

PICTURED = ["DiT", "TC-DiT", "DiT guided", "TC-DiT guided"]


def train_and_draw(arguments: argparse.Namespace, seed: int) -> Path:
    """All runs of one seed; returns the file with their figures."""
    folder = arguments.output_dir / f"seed_{seed}"
    for name, options in RUNS.items():
        command(
            "training.train_dit",
            *("--config", arguments.config, "--tokenizer", arguments.tokenizer, "--latents", arguments.latents),
            *("--output_dir", folder / slug(name), "--max_train_steps", arguments.steps, "--seed", seed),
            *("--learning_rate", "1e-3", *options),
            *("--gfd_steps", max(1, arguments.steps // 4), "--gfd_reference", arguments.reference),
            *("--gfd_samples", min(256, arguments.num_samples), "--resume", "latest"),
            result=folder / slug(name) / "pipeline",
        )
    for name, (run, guidance_scale, options) in SAMPLES.items():
        labels = "balanced" if run == "unconditional" else arguments.reference
        command(
            "evaluation",
            *("generate", "--pipeline", folder / slug(run) / "pipeline", "--output", folder / "samples" / slug(name)),
            *("--num_images", arguments.num_samples, "--labels", labels, "--seed", seed),
            *("--num_inference_steps", arguments.num_inference_steps, "--guidance_scale", guidance_scale, *options),
            result=folder / "samples" / slug(name) / "manifest.json",
        )
    figures = folder / "results" / "generation.json"
    sets = [f"{name}={folder / 'samples' / slug(name)}" for name in SAMPLES]
    command(
        "evaluation",
        *("generation", "--samples", *sets, "--reference", arguments.reference, "--output", figures.parent),
        result=figures,
    )
    return figures


def table(files: dict[int, Path]) -> tuple[str, dict]:
    """Markdown with the mean over seeds (and the range), and the same as numbers."""
    values: dict[str, dict[str, list[float]]] = {}
    floors: dict[str, float] = {}
    for file in files.values():
        for entry in json.loads(file.read_text())["sets"]:
            for figure in entry["figures"]:
                values.setdefault(entry["name"], {}).setdefault(figure["name"], []).append(figure["value"])
                if "floor" in figure:
                    floors[figure["name"]] = figure["floor"]["value"]
    names = list(next(iter(values.values())))
    lines = ["| samples | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for samples, figures in values.items():
        cells = []
        for name in names:
            low, high = min(figures[name]), max(figures[name])
            spread = f" ({low:.4g} to {high:.4g})" if len(figures[name]) > 1 else ""
            cells.append(f"{statistics.mean(figures[name]):.4g}{spread}")
        lines.append(f"| {samples} | " + " | ".join(cells) + " |")
    lines.append(
        "| *real against real* | " + " | ".join(f"{floors.get(name, float('nan')):.4g}" for name in names) + " |"
    )
    return "\n".join(lines) + "\n", {"figures": values, "floors": floors}


def draw_curves(arguments: argparse.Namespace) -> None:
    """Training loss and online distance of every run, a line per seed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for colour, name in enumerate(RUNS):
        for number, seed in enumerate(arguments.seeds):
            scalars = read_scalars(arguments.output_dir / f"seed_{seed}" / slug(name))
            style = {"color": f"C{colour}", "label": name if number == 0 else None, "linewidth": 1}
            left.plot(*scalars["train/loss"], **style)
            for tag, curve in scalars.items():
                if tag.startswith("online/"):
                    right.plot(*curve, marker=".", **style)
                    right.set_ylabel(tag.removeprefix("online/") + ", a trend only", fontsize=8)
    left.set_ylabel("velocity loss")
    for axes in (left, right):
        axes.set_xlabel("steps")
        axes.legend()
    figure.savefig(arguments.output_dir / "curves.png", dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", type=Path, required=True, help="calibrated tokenizer, as cache_latents left it")
    parser.add_argument("--latents", type=Path, required=True, help="its cache of the training images")
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--config", default="openmoji32_dit", help="preset with the size shared by all runs")
    parser.add_argument("--reference", default="openmoji:train", help="images the latents were made of")
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--num_samples", type=int, default=500)
    parser.add_argument("--num_inference_steps", type=int, default=25)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    files = {seed: train_and_draw(arguments, seed) for seed in arguments.seeds}
    text, numbers = table(files)
    settings = (
        f"{arguments.steps} steps, {arguments.num_samples} samples, seeds {', '.join(map(str, arguments.seeds))}"
    )
    (arguments.output_dir / "comparison.md").write_text(f"{settings}; mean over seeds (lowest to highest).\n\n{text}")
    (arguments.output_dir / "comparison.json").write_text(json.dumps({"settings": settings, **numbers}, indent=1))
    draw_curves(arguments)
    # The evaluation names its grids after the sample sets.
    results = files[arguments.seeds[0]].parent
    gather_grids({name: results / f"samples_{name}.png" for name in PICTURED}, arguments.output_dir / "samples.png")
    print(text)


if __name__ == "__main__":
    main()
