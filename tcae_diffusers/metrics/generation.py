"""How close a set of generated images is to real ones: every measure of [`SET_MEASURES`], each with its floor."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ..data.images.image_sets import ImageSet
from ..errors import InputError
from .feature_cache import features_of
from .features import FeatureNetwork
from .figure import Estimate, Figure
from .names import FULL_SAMPLE_COUNT, metric_name
from .reference import Reference
from .set_measures import SET_MEASURES, SampleFeatures
from .settings import SMALLEST_SET


def evaluate_generation(
    samples: ImageSet,
    reference: Reference,
    network: FeatureNetwork,
    reference_count: int | str = "equal",
    batch_size: int = 32,
    cache_folder: Path | None = None,
) -> list[Figure]:
    """All figures of one sample set.

    Args:
        samples: Generated images.
        reference: Real ones, see [`reference.open_reference`].
        reference_count: `equal` (as many as samples; all from 50,000 samples on), `all`, or a number.

    Raises:
        InputError: Fewer than 8 samples, or fewer real images than `reference_count` asks for.
    """
    own = sample_features(samples, network, batch_size, cache_folder)
    return generation_figures(own, reference, network, reference_count)


def sample_features(
    samples: ImageSet, network: FeatureNetwork, batch_size: int = 32, cache_folder: Path | None = None
) -> SampleFeatures:
    """Features of a sample set.

    Raises:
        InputError: Fewer than 8 samples.
    """
    if len(samples) < SMALLEST_SET:
        raise InputError(
            f"{samples.name} holds {len(samples)} images; at least {SMALLEST_SET} are needed, and thousands for a "
            "meaningful result"
        )
    return SampleFeatures(**features_of(samples, network, batch_size, cache_folder))


def compared_count(samples: int, reference: Reference, reference_count: int | str = "equal") -> int | None:
    """How many reference images a set of that many samples is compared with; `None` for all.

    Raises:
        InputError: Fewer than `reference_count` asks for.
    """
    available = 0 if reference.features is None else len(reference.features)
    if reference_count == "equal":
        return None if samples >= FULL_SAMPLE_COUNT else min(samples, available)
    if reference_count == "all":
        return None
    if int(reference_count) > available:
        raise InputError(f"--reference_count {reference_count}, but there are only {available} real images; pass all")
    return int(reference_count)


def generation_figures(
    samples: SampleFeatures, reference: Reference, network: FeatureNetwork, reference_count: int | str = "equal"
) -> list[Figure]:
    """As [`evaluate_generation`], of features."""
    used, estimates = reference.compare(samples, compared_count(len(samples), reference, reference_count))
    sizes, floor = reference.floor(len(samples), used)
    figures = []
    for measure in SET_MEASURES:
        for name, better in measure.better.items():
            if name not in estimates:
                continue
            estimate = estimates[name]
            # What is compared with fixed statistics, or with nothing, is limited by the samples alone.
            other = used if measure.has_reference and estimate.reference is None else None
            smaller = len(samples) if other is None else min(len(samples), other)
            figures.append(
                Figure.of(
                    estimate,
                    name=metric_name(name, network.name, smaller, prefix="g" if measure.is_of_generators else ""),
                    samples=len(samples),
                    better=better,
                    reference_images=other,
                    floor=_with_sizes(floor[name], sizes) if name in floor else None,
                    extractor=network.describe(),
                )
            )
    return figures


def _with_sizes(floor: Estimate, sizes: tuple[int, int]) -> Estimate:
    return replace(floor, details={**floor.details, "images": list(sizes)})
