"""A figure: a number together with what gives it meaning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal, Self

Better = Literal["higher", "lower"]


@dataclass(kw_only=True)
class Estimate:
    """
    What a measure gives: a value and how certain it is.

    Args:
        value (`float`): The number.
        interval (`float`, *optional*): Half the width of its 95 % interval.
        interval_method (`str`, *optional*): How the interval was made.
        std (`float`, *optional*): Standard deviation over the measure's own subsets, where its definition has some.
        std_over_draws (`float`, *optional*): Standard deviation over random draws from the reference.
        reference (`str`, *optional*): What stood on the other side, if it was not a set of images.
        details (`dict`): Whatever else the measure says of itself, such as `r_squared` of a fit; JSON-ready.
    """

    value: float
    interval: float | None = None
    interval_method: str | None = None
    std: float | None = None
    std_over_draws: float | None = None
    reference: str | None = None
    details: dict[str, Any] = field(default_factory=dict)

    def with_interval(self, interval: float | None, method: str) -> Estimate:
        """The same with its interval; without one if `interval` is `None`."""
        return self if interval is None else replace(self, interval=interval, interval_method=method)

    def to_json(self) -> dict[str, Any]:
        """JSON-ready: entries that are `None` are omitted, and `details` are merged in."""
        own = {entry.name: getattr(self, entry.name) for entry in fields(self) if entry.name != "details"}
        return {name: _stored(value) for name, value in own.items() if value is not None} | self.details

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Inverse of [`to_json`]."""
        known = {entry.name for entry in fields(cls)} - {"details"}
        details = {name: value for name, value in content.items() if name not in known}
        return cls(**{name: content[name] for name in known & set(content)}, details=details)

    @classmethod
    def of(cls, estimate: Estimate, **described: Any) -> Self:
        """What an estimate becomes with the arguments that a subclass adds."""
        return cls(**{entry.name: getattr(estimate, entry.name) for entry in fields(Estimate)}, **described)


def _stored(value: Any) -> Any:
    if isinstance(value, Estimate):
        return value.to_json()
    return asdict(value) if isinstance(value, Baseline) else value


@dataclass(frozen=True)
class Baseline:
    """What anybody can score without a model: `name` says how, `value` how much."""

    name: str
    value: float


@dataclass(kw_only=True)
class LinearBaseline(Estimate):
    """
    What a linear autoencoder with a latent of the same size scores on the same images, see [`linear_autoencoder`].

    Args:
        name (`str`): Block side and numbers per block, such as `linear f8c32`.
        difference_interval (`float`, *optional*): Half the width of the 95 % interval of the figure minus this value,
            of differences taken image by image.
    """

    name: str
    difference_interval: float | None = None


@dataclass(kw_only=True)
class Figure(Estimate):
    """
    An [`Estimate`] with its name and the images behind it.

    Args:
        name (`str`): What it may be called, see [`names.metric_name`].
        samples (`int`): Images that were measured.
        better (`str`): `"higher"` or `"lower"`.
        reference_images (`int`, *optional*): Images that they were compared with.
        floor ([`Estimate`], *optional*): What real images score against real ones, with their numbers, `images`.
        baseline ([`Baseline`], *optional*): What a figure has to beat.
        linear ([`LinearBaseline`], *optional*): What an autoencoder has to beat.
        extractor (`dict`, *optional*): Name, dimensions and hash of the feature network.
        per_image (`str`, *optional*): Column of `per_image.csv` whose mean this is.
    """

    name: str
    samples: int
    better: Better
    reference_images: int | None = None
    floor: Estimate | None = None
    baseline: Baseline | None = None
    linear: LinearBaseline | None = None
    extractor: dict[str, Any] | None = None
    per_image: str | None = None

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        content = dict(content)
        if "floor" in content:
            content["floor"] = Estimate.from_json(content["floor"])
        if "baseline" in content:
            content["baseline"] = Baseline(**content["baseline"])
        if "linear" in content:
            content["linear"] = LinearBaseline.from_json(content["linear"])
        return super().from_json(content)
