"""
FDr, the normalised Fréchet distance ratio (Yang et al. 2026, arXiv 2604.28190, section 3.4): how much further
generated images are from the training images than held-out ones are, averaged over feature networks.

    FDr_network = FD(generated, training) / FD(held out, training)          (eq. 7)
    FDr_K = mean of FDr_network over K networks                             (eq. 8)

Distances of different networks have different scales, ratios do not, and held-out images score 1 by definition. The
paper's FDr_6 takes Inception-v3, ConvNeXt-v2, DINOv2, MAE, SigLIP2 and CLIP, with 50,000 images on either side. Its
value depends on the networks, so the figure is named after all of them, and one of other networks is no FDr_6.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..data.images.image_sets import ImageSet
from ..errors import InputError
from .confidence import JACKKNIFE, jackknife_interval
from .feature_cache import features_of
from .features import FeatureNetwork
from .figure import Estimate, Figure
from .frechet import OWN_ENGINE, FrechetStatistics, frechet_distance
from .frechet_interval import leave_out_distances
from .names import INCEPTION
from .settings import SMALLEST_SET


@dataclass(frozen=True)
class Distances:
    """
    From one set of images to the training images, in one network.

    Args:
        value (`float`): The Fréchet distance.
        without (`list[float]`, *optional*): Those without each group of images, see [`leave_out_distances`].
    """

    value: float
    without: list[float] | None

    @classmethod
    def between(cls, features: np.ndarray, training: np.ndarray | FrechetStatistics, seed: int) -> Distances:
        return cls(frechet_distance(features, training), leave_out_distances(features, training, seed))


@dataclass
class FrechetRatio:
    """
    FDr of sample sets.

    Equally many generated and held-out images are compared with all training images, of the larger set a random part:
    the distance is biased upwards for small sets, and only so do the biases of numerator and denominator cancel.

    Args:
        heldout (`ImageSet`): Real images that no training saw, of the samples' size.
        training (`ImageSet`, *optional*): The real images that the distances are to; `None` for a file of statistics.
        networks (`Sequence[FeatureNetwork]`): Over which ratios are averaged.
        statistics ([`FrechetStatistics`], *optional*): Of training images in Inception's features; they take the place
            of `training` in that network.
        batch_size (`int`), cache_folder (`Path`, *optional*): As in [`features_of`].
        seed (`int`): Of the random part.

    Raises:
        InputError: Fewer than 8 held-out images, the same as `training`, no training images for a network, or two
            networks of one name.
    """

    heldout: ImageSet
    training: ImageSet | None
    networks: Sequence[FeatureNetwork]
    statistics: FrechetStatistics | None = None
    batch_size: int = 32
    cache_folder: Path | None = None
    seed: int = 0
    _training: dict[str, np.ndarray | FrechetStatistics] = field(default_factory=dict, init=False)
    _heldout: dict[tuple[str, int], Distances] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        names = [network.name for network in self.networks]
        for network in names:
            if names.count(network) > 1:
                raise InputError(f"--fdr_networks names {network} twice; FDr averages over different networks")
            if self.training is None and network != INCEPTION:
                raise InputError(
                    f"--fdr_networks {network} needs real images as --reference, which holds statistics of "
                    f"{INCEPTION} only"
                )
        if len(self.heldout) < SMALLEST_SET:
            raise InputError(
                f"--heldout {self.heldout.name} has {len(self.heldout)} images; FDr needs at least {SMALLEST_SET}, "
                "and thousands for a meaningful result"
            )
        if self.training is not None and self.training.fingerprint == self.heldout.fingerprint:
            raise InputError(
                f"--heldout {self.heldout.name} and --reference {self.training.name} are the same images; name real "
                "images that no training saw, such as openmoji:heldout"
            )

    def figure(self, samples: ImageSet) -> Figure:
        """
        FDr of a sample set, with the ratio and both distances of each network in its details.

        Raises:
            InputError: Held-out images at no distance from the training images.
        """
        count = min(len(samples), len(self.heldout))
        found = {network.name: self._pair(samples, network, count) for network in self.networks}
        names = "+".join(found)
        return Figure.of(
            self._estimate(found),
            name=f"FDr{len(found)}-{names}",
            samples=count,
            better="lower",
            reference_images=None if self.training is None else len(self.training),
            floor=Estimate(value=1.0, details={"of": "held-out images, by definition"}),
            extractor={
                "name": names,
                "dimensions": [network.dimensions for network in self.networks],
                "weights_sha256": [network.weights_sha256 for network in self.networks],
            },
        )

    def _estimate(self, found: dict[str, tuple[Distances, Distances]]) -> Estimate:
        ratios = {name: own.value / heldout.value for name, (own, heldout) in found.items()}
        without = [
            np.divide(own.without, heldout.without)
            for own, heldout in found.values()
            if own.without is not None and heldout.without is not None
        ]
        described = {
            name: {"ratio": ratios[name], "distance": own.value, "heldout_distance": heldout.value}
            for name, (own, heldout) in found.items()
        }
        estimate = Estimate(
            value=float(np.mean(list(ratios.values()))),
            details={
                "networks": described,
                "engine": OWN_ENGINE,
                "heldout_fingerprint": self.heldout.fingerprint,
            },
        )
        if len(without) < len(found):
            return estimate
        of_groups = np.mean(without, axis=0)
        return estimate.with_interval(jackknife_interval(lambda group: of_groups[group]), JACKKNIFE)

    def _pair(self, samples: ImageSet, network: FeatureNetwork, count: int) -> tuple[Distances, Distances]:
        """From `count` samples, and from as many held-out images, to the training images."""
        training = self._training_side(network)
        if (network.name, count) not in self._heldout:
            heldout = Distances.between(self._features(self.heldout, network, count), training, self.seed)
            if heldout.value <= 0:
                raise InputError(
                    f"--heldout {self.heldout.name} is at distance {heldout.value:g} from --reference in the features "
                    f"of {network.name}, so there is no ratio to it; name images that are not in the reference"
                )
            self._heldout[network.name, count] = heldout
        own = Distances.between(self._features(samples, network, count), training, self.seed)
        return own, self._heldout[network.name, count]

    def _training_side(self, network: FeatureNetwork) -> np.ndarray | FrechetStatistics:
        if network.name == INCEPTION and self.statistics is not None:
            return self.statistics
        if network.name not in self._training:
            assert self.training is not None, "only statistics of Inception can do without images"
            features = features_of(self.training, network, self.batch_size, self.cache_folder)["features"]
            self._training[network.name] = features
        return self._training[network.name]

    def _features(self, images: ImageSet, network: FeatureNetwork, count: int) -> np.ndarray:
        features = features_of(images, network, self.batch_size, self.cache_folder)["features"]
        if len(features) == count:
            return features
        return features[np.random.default_rng([self.seed, 5]).choice(len(features), count, replace=False)]
