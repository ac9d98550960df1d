"""
What do self-supervision (SSL) and staged token compression (STC) give? The same small tokenizer with each on and off,
trained alike; a DiT on the latents of each; everything measured.

    python docs/studies/compare_tokenizers.py --output_dir runs/compare_tokenizers

Every step is a command of this package and is skipped once done, so an interrupted study goes on where it was;
`--only` lets several processes share the work. In OUTPUT_DIR: `comparison.md` (the tables),
`comparison/comparison.html` (the whole report), `curves.png`, and pictures of reconstructions, tokens and samples.
"""

import argparse
import json
from pathlib import Path

import yaml
from study_commands import command, gather_grids, slug

from tcae_diffusers.evaluation.commands.comparison_plan import folder_name
from tcae_diffusers.evaluation.report.training_curves import read_scalars

# Preset of all tokenizers, and by name the options of each. The first is what the others are compared with.
PRESET = "openmoji32_adamw"
WITHOUT_SSL, WITHOUT_STC = ("--ssl", "none"), ("--autoencoder", "tc-ae-xs-f8c32-nostc")
TOKENIZERS = {
    "plain": (*WITHOUT_STC, *WITHOUT_SSL),
    "STC": WITHOUT_SSL,
    "SSL": WITHOUT_STC,
    "SSL + STC": (),
}
PICTURES = {
    "reconstructions": "original-over-reconstruction",
    "tokens": "over-last-tokens-over-latent",
}


def measured_steps(dit_steps: int) -> list[int]:
    """Steps at which the generators are measured: an eighth, a quarter, a half and all of the run."""
    return [dit_steps // 8, dit_steps // 4, dit_steps // 2, dit_steps]


def train(arguments: argparse.Namespace, name: str) -> None:
    """Tokenizer, latents and DiT of one name."""
    folder = arguments.output_dir
    tokenizer, latents, dit = (folder / kind / slug(name) for kind in ("tokenizers", "latents", "dits"))
    command(
        "training.train_tcae",
        *("--config", PRESET, *TOKENIZERS[name], "--output_dir", tokenizer),
        *("--max_train_steps", arguments.tokenizer_steps, "--seed", arguments.seed, "--resume", "latest"),
        result=tokenizer / "model",
    )
    command(
        "training.cache_latents",
        *("--tokenizer", tokenizer / "model", "--data", arguments.train, "--output_dir", latents),
        "--write_statistics",
        result=latents / "manifest.json",
    )
    command(
        "training.train_dit",
        *("--config", arguments.dit_config, "--tokenizer", tokenizer / "model", "--latents", latents),
        *("--output_dir", dit, "--max_train_steps", arguments.dit_steps, "--seed", arguments.seed),
        *("--pipeline_steps", measured_steps(arguments.dit_steps)[0], "--learning_rate", "1e-3", "--resume", "latest"),
        result=dit / "pipeline",
    )


def write_plan(arguments: argparse.Namespace, names: list[str], path: Path) -> Path:
    """The comparison file of these tokenizers, for `evaluation compare --config`."""
    folder = arguments.output_dir

    def pipeline(name: str, step: int) -> str:
        dit = folder / "dits" / slug(name)
        return str(dit / "pipeline" if step == arguments.dit_steps else dit / "pipelines" / f"step-{step:08d}")

    plan = {
        "tokenizers": {
            name: {
                "autoencoder": str(folder / "tokenizers" / slug(name) / "model"),
                "pipelines": {step: pipeline(name, step) for step in measured_steps(arguments.dit_steps)},
            }
            for name in names
        },
        "train": arguments.train,
        "test": arguments.test,
        "feature_cache": str(folder / "features"),
        "num_images": arguments.num_samples,
        "num_inference_steps": 25,
        "guidance_scale": 1.5,
        "labels": arguments.train,
        "seed": arguments.seed,
    }
    path.write_text(yaml.safe_dump(plan, sort_keys=False))
    return path


def tables(comparison: dict, convergence: dict) -> str:
    """The figures of all tokenizers, and the speed-ups over the first, as Markdown."""
    subjects = comparison["subjects"]
    lines = ["| | " + " | ".join(subjects) + " |", "|---" * (len(subjects) + 1) + "|"]
    for row in comparison["rows"]:
        cells = []
        for subject in subjects:
            entry = row["values"].get(subject)
            interval = f" ± {entry['interval']:.2g}" if entry and "interval" in entry else ""
            cells.append("-" if entry is None else f"{entry['value']:.4g}{interval}")
        # Differences to the baseline that are larger than their interval, in either direction.
        for pair in row["differences"]:
            if pair["first"] == subjects[0] and pair["larger"]:
                mark = " (better)" if pair["better"] == pair["second"] else " (worse)"
                cells[subjects.index(pair["second"])] += mark
        lines.append(f"| {row['name']}, {row['better']} is better | " + " | ".join(cells) + " |")
    lines += ["", f"Steps to the same {convergence['figure']} as {convergence['baseline']}:", ""]
    others = [name for name in subjects if name != convergence["baseline"]]
    lines += ["| level (steps of the baseline) | " + " | ".join(others) + " |", "|---" * (len(others) + 1) + "|"]
    for level in convergence["levels"]:
        cells = []
        for name in others:
            found = level["curves"][name]
            text = f"{'at least ' if found.get('at_least') else ''}{found.get('factor', 0):.2f}x"
            cells.append(text if found["reached"] else "not reached")
        lines.append(f"| {level['level']:.4g} ({level['baseline_steps']}) | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def draw_curves(arguments: argparse.Namespace, convergence: dict) -> None:
    """How the tokenizers trained, and the distance of samples against the steps of the DiT."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = {"heldout/psnr": "held-out PSNR, dB", "train/loss_mim": "L_MIM", "train/loss_cls": "L_[CLS]"}
    figure, axes = pyplot.subplots(1, len(panels) + 1, figsize=(15, 3.6), layout="constrained")
    for colour, name in enumerate(TOKENIZERS):
        scalars = read_scalars(arguments.output_dir / "tokenizers" / slug(name))
        style = {"color": f"C{colour}", "label": name, "linewidth": 1}
        for panel, tag in zip(axes, panels, strict=False):
            if tag in scalars:
                panel.plot(*scalars[tag], **style)
        points = convergence["curves"][name]
        values, intervals = ([point[key] for point in points] for key in ("value", "interval"))
        axes[-1].errorbar([point["steps"] for point in points], values, intervals, marker=".", capsize=3, **style)
    for panel, label in zip(axes, [*panels.values(), convergence["figure"]], strict=True):
        panel.set_ylabel(label)
        panel.set_xlabel("tokenizer steps")
        panel.legend(fontsize=8)
    axes[-1].set_xlabel("DiT steps")
    axes[-1].set_xscale("log")
    axes[-1].set_xticks(measured_steps(arguments.dit_steps), map(str, measured_steps(arguments.dit_steps)))
    axes[-1].minorticks_off()
    figure.savefig(arguments.output_dir / "curves.png", dpi=100)


def stack_pictures(arguments: argparse.Namespace) -> None:
    """One picture per kind, a part for each tokenizer, in their order."""
    from PIL import Image

    folder = arguments.output_dir
    for kind, ending in PICTURES.items():
        parts = []
        for name in TOKENIZERS:
            pictures = (folder / "tokenizers" / slug(name) / "pictures").glob(f"*{ending}.png")
            parts.append(Image.open(sorted(pictures)[-1]).convert("RGB"))
        heights = [part.height + 6 for part in parts]
        stacked = Image.new("RGB", (max(part.width for part in parts), sum(heights)), "white")
        for number, part in enumerate(parts):
            stacked.paste(part, (0, sum(heights[:number])))
        stacked.save(folder / f"{kind}.png")


def gather_samples(arguments: argparse.Namespace) -> None:
    """The samples after the last step, a part of the picture for each tokenizer, a row of each for every class."""
    grids = {}
    for name in TOKENIZERS:
        point = arguments.output_dir / "comparison" / folder_name(name) / "generation" / str(arguments.dit_steps)
        (grids[name],) = (point / "results").glob("samples_*.png")
    gather_grids(grids, arguments.output_dir / "samples.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=list(TOKENIZERS), help="do the part of these, and stop there")
    parser.add_argument("--tokenizer_steps", type=int, default=1500)
    parser.add_argument("--dit_config", default="openmoji32_dit", help="preset of the DiT (default: %(default)s)")
    parser.add_argument("--dit_steps", type=int, default=2400)
    parser.add_argument("--num_samples", type=int, default=500, help="images drawn at each point")
    parser.add_argument("--train", default="openmoji:train")
    parser.add_argument("--test", default="openmoji:heldout")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    folder = arguments.output_dir
    output = folder / "comparison"
    folder.mkdir(parents=True, exist_ok=True)
    for name in arguments.only or TOKENIZERS:
        train(arguments, name)
        # What is measured here is not measured again below: the results of a tokenizer have a folder of their own.
        last = output / folder_name(name) / "generation" / str(arguments.dit_steps) / "results" / "generation.json"
        plan = write_plan(arguments, [name], folder / f"comparison-{slug(name)}.yaml")
        command("evaluation", "compare", "--config", plan, "--output", output, result=last)
    if arguments.only:
        return
    plan = write_plan(arguments, list(TOKENIZERS), folder / "comparison.yaml")
    page = output / "comparison.html"
    page.unlink(missing_ok=True)
    command("evaluation", "compare", "--config", plan, "--output", output, result=page)
    comparison, convergence = (
        json.loads((output / f"{kind}.json").read_text()) for kind in ("comparison", "convergence")
    )
    draw_curves(arguments, convergence)
    stack_pictures(arguments)
    gather_samples(arguments)
    text = tables(comparison, convergence)
    settings = (
        f"{arguments.tokenizer_steps} tokenizer steps, {arguments.dit_steps} DiT steps,"
        f" {arguments.num_samples} samples a point, seed {arguments.seed}."
    )
    (folder / "comparison.md").write_text(f"{settings}\n\n{text}")
    print(text)


if __name__ == "__main__":
    main()
