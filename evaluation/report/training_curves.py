"""Curves of training runs: read from TensorBoard event files, and drawn with what to look for in each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tcae_diffusers.errors import InputError

from .charts import line_chart

Curve = tuple[list[int], list[float]]


def read_scalars(run_folder: str | Path) -> dict[str, Curve]:
    """All scalars below a run folder: `{tag: (steps, values)}`, in the order of steps.

    A resumed run has several event files; where they overlap, what was written last counts.

    Raises:
        InputError: If the folder does not exist or holds no event file.
    """
    from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

    folder = Path(run_folder)
    if not folder.is_dir():
        raise InputError(f"run folder {folder} does not exist")
    files = sorted(folder.rglob("events.out.tfevents.*"), key=lambda file: file.stat().st_mtime)
    if not files:
        raise InputError(f"no TensorBoard event file (events.out.tfevents.*) below {folder}")
    points: dict[str, dict[int, float]] = {}
    for file in files:
        events = EventAccumulator(str(file), size_guidance={SCALARS: 0})
        events.Reload()
        for tag in events.Tags()["scalars"]:
            for event in events.Scalars(tag):
                points.setdefault(tag, {})[event.step] = event.value
    return {tag: (sorted(values), [values[step] for step in sorted(values)]) for tag, values in points.items()}


@dataclass(frozen=True)
class Chart:
    """Curves that belong together: `{tag: legend}`, what to look for, and whether they are about the run's health."""

    title: str
    tags: dict[str, str]
    caption: str
    is_health: bool = False


_CHARTS = [
    Chart("Loss", {"train/loss": "loss"}, "The sum that is minimised. It falls and flattens; its value says little."),
    Chart(
        "Reconstruction loss",
        {"train/loss_rec": "sum", "train/loss_pixel": "pixel", "train/loss_l1": "L1", "train/loss_mse": "MSE"},
        "Distance between image and reconstruction on the training images.",
    ),
    Chart(
        "iBOT losses",
        {"train/loss_ssl": "sum", "train/loss_mim": "masked tokens", "train/loss_cls": "across views"},
        "Cross-entropy of the student with its own slow average, on masked tokens and across views. Falling means "
        "that hidden parts become predictable. The target moves too, so a rise early on is normal.",
    ),
    Chart(
        "Is the teacher alive? Class token",
        {
            "ssl/teacher_class_entropy": "single outputs",
            "ssl/teacher_class_mean_entropy": "their mean",
            "ssl/teacher_entropy": "single outputs",
            "ssl/teacher_mean_entropy": "their mean",
        },
        "Entropy of single teacher outputs, and of their mean. Healthy: the mean stays high (all prototypes in "
        "use) while single outputs sharpen below it. Both at the maximum, or both at zero, would be collapse.",
    ),
    Chart(
        "Is the teacher alive? Patch tokens",
        {"ssl/teacher_patch_entropy": "single outputs", "ssl/teacher_patch_mean_entropy": "their mean"},
        "The same for the tokens of patches, which the masked tokens have to predict.",
    ),
    Chart(
        "Held-out PSNR",
        {"heldout/psnr": "PSNR (dB)"},
        "Reconstruction of images that were never trained on, in dB; one dB more is a fifth less squared error.",
    ),
    Chart(
        "Spread of the latent", {"latent/std": "deviation"}, "Standard deviation of the raw latent; zero is collapse."
    ),
    Chart("Learning rate", {"train/learning_rate": "rate"}, "Warm-up, then decay.", is_health=True),
    Chart(
        "Gradient norm",
        {"train/grad_norm": "norm"},
        "Before clipping. Single spikes are clipped away.",
        is_health=True,
    ),
    Chart(
        "Speed",
        {"train/images_per_second": "images/s"},
        "Images per second; dips are held-out checks, checkpoints, or a busy machine.",
        is_health=True,
    ),
    Chart(
        "Waiting for data", {"train/data_wait_share": "share"}, "Share of the time without work to do.", is_health=True
    ),
    Chart("Memory", {"train/memory_gib": "GiB"}, "Peak memory of the process in GiB.", is_health=True),
]


def run_charts(scalars: dict[str, Curve]) -> dict[str, list[dict[str, str]]]:
    """Charts of a run: `main` for what was learned, `health` for how it ran and for tags that are not known."""
    known = {tag for chart in _CHARTS for tag in chart.tags}
    others = [Chart(tag, {tag: tag}, "", is_health=True) for tag in scalars if tag not in known]
    result: dict[str, list[dict[str, str]]] = {"main": [], "health": []}
    for chart in [*_CHARTS, *others]:
        series = {legend: scalars[tag] for tag, legend in chart.tags.items() if tag in scalars}
        if series:
            drawn = {"title": chart.title, "caption": chart.caption, "svg": line_chart(series)}
            result["health" if chart.is_health else "main"].append(drawn)
    return result
