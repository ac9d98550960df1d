"""Curves of training runs: read from TensorBoard event files, and drawn with what to look for in each."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from tcae_diffusers.charts import Chart
from tcae_diffusers.errors import InputError
from tcae_diffusers.files import file_names
from tcae_diffusers.self_supervision import method_charts

from .charts import line_chart

Curve = tuple[list[int], list[float]]


def read_scalars(run_folder: str | Path) -> dict[str, Curve]:
    """All scalars below a run folder: `{tag: (steps, values)}`, in the order of steps.

    A run that was started again has several event files. Each continues those before it from its first step, so what
    they hold from there on belongs to a run that was given up.

    Raises:
        InputError: If the folder does not exist, holds no event file, or those of several runs.
    """
    from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

    folder = Path(run_folder)
    if not folder.is_dir():
        raise InputError(f"run folder {folder} does not exist")
    files = [folder / name for name in file_names(folder) if "events.out.tfevents." in name]
    if not files:
        raise InputError(f"no TensorBoard event file (events.out.tfevents.*) below {folder}")
    points: dict[str, dict[int, float]] = {}
    logged_in: dict[str, Path] = {}
    # Links may lead to a file twice.
    opened = []
    for file in {Path(os.path.realpath(file)) for file in files}:
        events = EventAccumulator(str(file), size_guidance={SCALARS: 0})
        events.Reload()
        # What was killed at once left an empty file. Names tell only the second in which a file was opened.
        if events.file_version is not None:
            opened.append((events.FirstEventTimestamp(), file, events))
    for _, file, events in sorted(opened, key=lambda entry: entry[:2]):
        scalars = {tag: {event.step: event.value for event in events.Scalars(tag)} for tag in events.Tags()["scalars"]}
        start = min((min(values) for values in scalars.values()), default=0)
        own = {tag for tag, place in logged_in.items() if place == file.parent}
        for tag in own:
            points[tag] = {step: value for step, value in points[tag].items() if step < start}
        for tag, values in scalars.items():
            if logged_in.setdefault(tag, file.parent) != file.parent:
                raise InputError(
                    f"{folder} holds several training runs (in {logged_in[tag]} and {file.parent}); name each of them"
                )
            points.setdefault(tag, {}).update(values)
    ordered = {tag: sorted(values.items()) for tag, values in points.items() if values}
    return {tag: ([step for step, _ in curve], [value for _, value in curve]) for tag, curve in ordered.items()}


_LEARNING = (
    Chart(
        "Loss",
        {"train/loss": "loss"},
        "What is minimised. It should fall and then level off; its value says little, since it depends on which terms "
        "are in it.",
    ),
    Chart(
        "Reconstruction loss",
        {"train/loss_rec": "weighted sum", "train/loss_(l1|charbonnier|mse)": r"\1"},
        "Distance between the pixels of images and their reconstructions, on training images. Terms are shown without "
        "their weights; the sum has all of them, a perceptual one included.",
    ),
    Chart(
        "Perceptual loss",
        {"train/loss_((?:lpips|efficientnet)-.+)": r"\1"},
        "Distance between images and reconstructions in the features of a pretrained network, which notices blur and "
        "false texture that pixels hardly show.",
    ),
    Chart(
        "KL divergence",
        {"train/loss_kl": "KL"},
        "How far the encoder's distribution is from a standard normal one, per pixel value and without its weight. It "
        "settles where reconstruction is worth more than closeness; growth without end means too small a weight.",
    ),
    Chart(
        "Alignment of the latent",
        {"train/loss_alignment_cosine": "position by position", "train/loss_alignment_distance": "between positions"},
        "How far the projected latent is from the tokens of a frozen network, beyond the margins: the cosine of each "
        "position, and the cosines between positions. Both should fall; at 0 the margins are kept.",
    ),
    Chart(
        "Weight of the alignment",
        {"train/alignment_weight": "weight"},
        "Factor that makes the gradient of the alignment at the latent as large as that of the reconstruction, before "
        "the weight of the run. It grows where the margins are kept.",
    ),
    Chart(
        "Adversarial losses",
        {"train/loss_gan": "decoder", "train/loss_discriminator": "discriminator"},
        "Two opponents, so neither has to fall. With the hinge loss the discriminator is at 1 when it cannot tell "
        "reconstructions from images and at 0 when it always can.",
    ),
    Chart(
        "Discriminator outputs",
        {"discriminator/logits_real": "images", "discriminator/logits_fake": "reconstructions"},
        "Mean outputs of the discriminator. If they stay far apart, it has won and teaches the decoder little.",
    ),
    Chart(
        "Adaptive weight",
        {"train/adaptive_weight": "weight"},
        "Factor that makes the adversarial gradient as large as that of the reconstruction. Sudden growth means that "
        "the adversarial gradient vanishes.",
    ),
    Chart(
        "Flow matching loss",
        {"train/velocity_loss": "velocity", "train/direction_loss": "direction"},
        "Squared error of the predicted velocity, and one minus the cosine between the predicted and the true one, "
        "both without weights.",
    ),
    Chart(
        "Held-out PSNR (dB)",
        {"heldout/psnr": "PSNR"},
        "Reconstruction of images that were never trained on, by the averaged weights. One dB more is a fifth less "
        "squared error.",
    ),
    Chart(
        "Held-out SSIM",
        {"heldout/ssim": "SSIM"},
        "Similarity of local structure between the same images and their reconstructions; 1 is identity.",
    ),
    Chart(
        "Held-out distance",
        {"heldout/(rF.+)": r"\1"},
        "Fréchet distance between the same images and their reconstructions; lower is better. With few images it is "
        "biased upwards, so compare the points of one curve only.",
    ),
    Chart(
        "Held-out distance of generated latents",
        {"heldout/(gF.+)": r"\1"},
        "Fréchet distance between held-out images and what the decoder makes of latents that a diffusion model drew; "
        "lower is better. It shows a trend, not a result.",
    ),
    Chart(
        "Spread of the latent channels",
        {
            "latent/channel_std": "mean",
            "latent/min_channel_std": "smallest",
            "heldout/min_channel_std": "smallest, held-out images",
        },
        "Standard deviation of the latent's channels before normalisation. A channel at 0 is dead.",
    ),
    Chart(
        "Effective rank of the latent",
        {"latent/effective_rank": "rank"},
        "How many directions of the latent are in use, at most its number of channels. A fall towards 1 is collapse.",
    ),
    Chart(
        "Online distance",
        {r"online/(g.+ of \d+ samples)": r"\1"},
        "Fréchet distance between samples drawn during training and real images; lower is better. So few samples show "
        "a trend, not a result.",
    ),
)
_HEALTH = (
    Chart("Learning rate", {"train/learning_rate": "rate"}, "Warm-up, then decay.", is_health=True),
    Chart(
        "Gradient norm",
        {"train/grad_norm": "norm"},
        "Before clipping. Single spikes are harmless, since they are clipped; steady growth is not.",
        is_health=True,
    ),
    Chart(
        "Gradient norm by part",
        {"train/grad_norm_(encoder|decoder|head)": r"\1"},
        "The same of encoder, decoder and whatever else is trained, at the logged steps alone. A part at 0 does not "
        "learn.",
        is_health=True,
    ),
    Chart(
        "Gradient norm of the discriminator",
        {"train/grad_norm_discriminator": "norm"},
        "Before clipping. Near 0, the discriminator has nothing left to learn.",
        is_health=True,
    ),
    Chart(
        "What was done to latents",
        {
            "shaping/scale": "side after scaling",
            "shaping/noise": "share of noise",
            "shaping/channels": "channels left",
        },
        "What training did to latents before they were decoded, as fractions of the whole, averaged over the steps "
        "since the last point. It is drawn at random, so it should show no trend; the reconstruction loss is of these "
        "latents, while held-out figures are of whole ones.",
        is_health=True,
    ),
    Chart(
        "Speed",
        {"train/images_per_second": "images/s"},
        "Images per second, without the time for evaluation and checkpoints. Dips mean a busy machine or slow data.",
        is_health=True,
    ),
    Chart(
        "Waiting for data",
        {"train/data_wait_share": "share"},
        "Fraction of the time spent waiting for the next batch. Much above 0, more loader workers help.",
        is_health=True,
    ),
    Chart(
        "Memory (GiB)",
        {"train/memory_gib": "GiB"},
        "Highest so far: of the GPU where there is one, else of the process. It should stay level.",
        is_health=True,
    ),
)


def all_charts() -> list[Chart]:
    """Charts of everything that the training commands log, those of the self-supervised methods among them."""
    return [*_LEARNING[:4], *method_charts(), *_LEARNING[4:], *_HEALTH]


def run_charts(scalars: Mapping[str, Curve]) -> dict[str, list[dict[str, str]]]:
    """Charts of a run: `main` for what was learned, `health` for how it ran and for tags that are not known."""
    charts = all_charts()
    known = {tag for chart in charts for tag in chart.select({tag: tag for tag in scalars}).values()}
    others = [Chart(tag, {re.escape(tag): "value"}, "", is_health=True) for tag in scalars if tag not in known]
    result: dict[str, list[dict[str, str]]] = {"main": [], "health": []}
    for chart in [*charts, *others]:
        if curves := chart.select(scalars):
            title = chart.title
            if len(curves) == 1 and not curves.keys() & set(chart.tags.values()):
                # There is no legend to name what the pattern of the tag has found.
                title = f"{title}: {next(iter(curves))}"
            drawn = {"title": title, "caption": chart.caption, "svg": line_chart(curves)}
            result["health" if chart.is_health else "main"].append(drawn)
    return result
