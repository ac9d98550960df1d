"""
Classification accuracy score (Ravuri and Vinyals 2019, arXiv 1905.10887): a classifier is trained on generated images
with the labels that they were drawn for, and tested on real images. Beside it stands what the same classifier scores
when it is trained on as many real images.

The paper trains a ResNet-50 on ImageNet. Here it is a convolutional network small enough for a CPU, so the figure is
called `CAS-convnet` and compares with figures of this package only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import PartialState
from scipy.special import stdtrit
from torch import nn

from ..data.distributed import gather_in_rank_order
from ..data.images.image_sets import ImageSet, uint8_batches
from ..data.images.pixel_range import to_signed
from ..errors import InputError
from .confidence import share_interval
from .figure import Baseline, Estimate, Figure

NAME = "CAS-convnet"
# Of 10,000 test images of Fashion-MNIST, 85 to 86 % are classified right after training on 5,000, in 15 s a
# classifier on one core. Three times the width of stride-1 convolutions adds 1.5 points and takes 50 s.
_WIDTHS = (32, 64, 128)
_LARGEST_SIDE = 32
_STEPS, _BATCH = 500, 128
_LEARNING_RATE, _WEIGHT_DECAY, _WARMUP_SHARE = 1e-2, 0.05, 0.2
# Seeds of weights and batches over which the accuracy is averaged.
_CLASSIFIERS = 3
_READ_AT_ONCE = 256


def build_classifier(classes: int, seed: int) -> nn.Sequential:
    """Three 3x3 convolutions of stride 2 with batch norm and ReLU, the mean over positions, a linear layer."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        for before, width in zip((3, *_WIDTHS), _WIDTHS, strict=False):
            convolution = nn.Conv2d(before, width, 3, stride=2, padding=1, bias=False)
            layers += [convolution, nn.BatchNorm2d(width), nn.ReLU()]
        layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(_WIDTHS[-1], classes)]
    return nn.Sequential(*layers).to(memory_format=torch.channels_last)


@dataclass(frozen=True)
class LabelledPixels:
    """Images in memory: uint8 `(N, 3, h, w)`, no side above 32 pixels, and class indices `(N,)`."""

    pixels: torch.Tensor
    labels: torch.Tensor

    @classmethod
    def read(cls, images: ImageSet, labels: Sequence[int], chosen: list[int] | None = None) -> LabelledPixels:
        """Images `chosen` of a set, or all; larger ones are resized to 32x32 (bilinear, antialiased)."""
        chosen = list(range(len(images))) if chosen is None else chosen
        parts = [_small(batch) for batch in uint8_batches(images, _READ_AT_ONCE, chosen)]
        return cls(torch.cat(parts), torch.tensor([labels[index] for index in chosen]))


def _small(batch: torch.Tensor) -> torch.Tensor:
    if max(batch.shape[-2:]) <= _LARGEST_SIDE:
        return batch
    size = (_LARGEST_SIDE, _LARGEST_SIDE)
    return F.interpolate(batch.float(), size=size, mode="bilinear", antialias=True).round().clamp(0, 255).byte()


def train_classifier(images: LabelledPixels, classes: int, seed: int, device: str | torch.device) -> nn.Module:
    """
    500 steps of 128 images (all of them, if there are fewer) by AdamW, cosine schedule with warm-up, no augmentation.

    Weights, batches and so the result are a function of the images, the seed and the machine.
    """
    model = build_classifier(classes, seed).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=_LEARNING_RATE, weight_decay=_WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, _LEARNING_RATE, total_steps=_STEPS, pct_start=_WARMUP_SHARE
    )
    count, generator = len(images.labels), torch.Generator().manual_seed(seed)
    batch = min(_BATCH, count)
    passes = -(-_STEPS * batch // count)
    order = torch.cat([torch.randperm(count, generator=generator) for _ in range(passes)])
    for chosen in order[: _STEPS * batch].split(batch):
        loss = F.cross_entropy(model(_network_input(images.pixels[chosen], device)), images.labels[chosen].to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def _network_input(pixels: torch.Tensor, device: str | torch.device) -> torch.Tensor:
    return to_signed(pixels, device).contiguous(memory_format=torch.channels_last)


@torch.inference_mode()
def classify(model: nn.Module, images: LabelledPixels, device: str | torch.device) -> np.ndarray:
    """Class indices `(N,)`."""
    parts = [model(_network_input(part, device)).argmax(dim=1).cpu() for part in images.pixels.split(_READ_AT_ONCE)]
    return torch.cat(parts).numpy()


def trained_accuracy(
    train: LabelledPixels, test: LabelledPixels, classes: int, seed: int = 0, device: str | torch.device = "cpu"
) -> Estimate:
    """
    Mean accuracy on `test` of three classifiers that were trained on `train`, with seeds `seed`, `seed + 1`, ...

    The interval is of the draw of test images and of the seeds together; that of the training images is not in it.
    """
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
        correct = np.stack(
            [
                classify(train_classifier(train, classes, seed + turn, device), test, device) == test.labels.numpy()
                for turn in range(_CLASSIFIERS)
            ]
        )
    accuracies = correct.mean(axis=1)
    accuracy, spread = float(accuracies.mean()), float(accuracies.std(ddof=1))
    of_seeds = float(stdtrit(_CLASSIFIERS - 1, 0.975)) * spread / np.sqrt(_CLASSIFIERS)
    return Estimate(
        value=accuracy,
        interval=float(np.hypot(share_interval(accuracy, len(test.labels)), of_seeds)),
        interval_method=f"95 % interval over test images and the seeds of {_CLASSIFIERS} classifiers",
        details={"accuracies": accuracies.tolist(), "training_images": len(train.labels)},
    )


class ClassificationAccuracy:
    """
    The classification accuracy score of sample sets.

    Args:
        heldout (`ImageSet`): Labelled real images to test on, of the samples' size.
        real (`ImageSet`, *optional*): Labelled real images to compare with; `None` for a file of statistics.
        device (`str`): Where classifiers run.
        seed (`int`): Of the classifiers, and of the draw from `real`.

    Raises:
        InputError: Real images without labels, of other classes, or the same as `heldout`.
    """

    def __init__(self, heldout: ImageSet, real: ImageSet | None, device: str | torch.device = "cpu", seed: int = 0):
        if heldout.labels is None or heldout.classes is None:
            raise InputError(f"--heldout {heldout.name} has no labels; name labelled images, in a folder per class")
        if real is None:
            raise InputError("--heldout needs real images as --reference, to train on too; it holds statistics only")
        if real.fingerprint == heldout.fingerprint:
            raise InputError(
                f"--heldout {heldout.name} and --reference {real.name} are the same images; name real images that "
                "no training saw, such as openmoji:heldout"
            )
        if len(heldout.classes) < 2:
            # What a source without labels looks like, too: any classifier would be right about all of it.
            raise InputError(
                f"--heldout {heldout.name} has the single class {heldout.classes[0]!r}; name images of several classes"
            )
        self._heldout, self._real, self._device, self._seed = heldout, real, device, seed
        self._test_labels, self._classes = heldout.labels, heldout.classes
        self._real_labels = self.labels_of(real)
        self._test: LabelledPixels | None = None
        self._ceilings: dict[int, Estimate] = {}

    def labels_of(self, images: ImageSet) -> list[int]:
        """
        The label of each image among the classes of the held-out ones, which classes are matched to by name, unless
        both have the same list of classes.

        Raises:
            InputError: No labels, a class that the held-out images do not have, or a name that several classes share.
        """
        if images.labels is None or images.classes is None:
            raise InputError(
                f"--heldout: {images.name} has no labels, without which no classifier can be trained on it; name a "
                "folder per class, or a set drawn by generate"
            )
        if list(images.classes) == list(self._classes):
            return list(images.labels)
        for each in (images, self._heldout):
            if shared := [name for name, count in Counter(each.classes).items() if count > 1]:
                raise InputError(
                    f"--heldout: {each.name} has several classes called {shared[0]!r}, so the classes of {images.name}"
                    f" and {self._heldout.name} cannot be matched by name; rename one"
                )
        index_of = {name: index for index, name in enumerate(self._classes)}
        unknown = sorted({images.classes[label] for label in images.labels} - index_of.keys())
        if unknown:
            known = ", ".join(self._classes[:10]) + (", ..." if len(self._classes) > 10 else "")
            raise InputError(
                f"--heldout: {images.name} has the class {unknown[0]!r}, which is none of "
                f"{self._heldout.name}: {known}"
            )
        return [index_of[images.classes[label]] for label in images.labels]

    def figure(self, samples: ImageSet) -> Figure:
        """
        The score of a sample set, with that of as many real images (all, if there are fewer) as its floor, and that of
        the commonest held-out class as baseline. Under several ranks the first computes, and all get it.

        Raises:
            InputError: As [`labels_of`].
        """
        labels, state = self.labels_of(samples), PartialState()
        own = self._estimates(samples, labels) if state.is_main_process else None
        estimate, ceiling = gather_in_rank_order(own, state)[0]
        shares = np.bincount(self._test_labels) / len(self._test_labels)
        described = {**estimate.details, "heldout_fingerprint": self._heldout.fingerprint}
        return Figure.of(
            replace(estimate, details=described),
            name=NAME,
            samples=len(samples),
            better="higher",
            reference_images=len(self._heldout),
            floor=ceiling,
            baseline=Baseline("the largest class for every image", float(shares.max())),
        )

    def _estimates(self, samples: ImageSet, labels: list[int]) -> tuple[Estimate, Estimate]:
        if self._test is None:
            self._test = LabelledPixels.read(self._heldout, self._test_labels)
        count = min(len(samples), len(self._real))
        if count not in self._ceilings:
            chosen = np.random.default_rng([self._seed, 4]).choice(len(self._real), count, replace=False)
            real = LabelledPixels.read(self._real, self._real_labels, sorted(chosen.tolist()))
            self._ceilings[count] = self._trained(real)
        return self._trained(LabelledPixels.read(samples, labels)), self._ceilings[count]

    def _trained(self, train: LabelledPixels) -> Estimate:
        assert self._test is not None
        return trained_accuracy(train, self._test, len(self._classes), self._seed, self._device)
