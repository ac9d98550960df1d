"""The shard being filled: what it accepts, and when it is complete."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from .format import DTYPES, ShapeBucket


@dataclass(frozen=True)
class LatentShard:
    """Samples `[start, stop)` of the data set, shard `number` of the cache, all of one shape."""

    number: int
    start: int
    stop: int
    bucket: ShapeBucket


class OpenShard:
    """Collects the latents of one shard, and tokens where the cache keeps them. Batches may come in any size and
    order; each image exactly once.

    Args:
        shard ([`LatentShard`]): Which.
        job (`dict`): The writer's description of the cache: `latent_shape`, `views`, `id2label`, `tokens`.
        submit (`Callable`): Takes `(shard, latents and tokens of each view, labels)` once all are there.
    """

    def __init__(self, shard: LatentShard, job: dict, submit: Callable):
        self.shard = shard
        self._job = job
        self._submit = submit
        count = shard.stop - shard.start
        # Latents are float32 until written: statistics and rounding error are those of what the encoder gave.
        self._values = {
            name: torch.empty((count, *shape), dtype=torch.float32 if name in job["views"] else DTYPES[dtype])
            for name, (shape, dtype) in shard.bucket.stored_values(job).items()
        }
        self._labels = torch.empty(count, dtype=torch.int64)
        self._seen = torch.zeros(count, dtype=torch.bool)

    def __enter__(self) -> "OpenShard":
        return self

    def add(
        self,
        indices: Sequence[int] | torch.Tensor,
        latents: dict[str, torch.Tensor],
        labels: Sequence[int] | torch.Tensor,
    ) -> None:
        """Add a batch.

        Args:
            indices (sequence of `int` or `torch.Tensor`): Indices `(B,)` of the images in the data set.
            latents (`dict[str, torch.Tensor]`): Raw latents `(B, C, h, w)` of each view, and where the cache keeps
                tokens those of each view, `(B, D, h', w')`; floating-point, any device.
            labels (sequence of `int` or `torch.Tensor`): Labels `(B,)`, below the number of classes.

        Raises:
            ValueError: An index is outside the shard or came before, a shape, dtype or view is wrong, a latent is not
                finite, or a label is out of range. The message names image and value.
        """
        indices = torch.as_tensor(indices, dtype=torch.int64, device="cpu")
        labels = torch.as_tensor(labels, dtype=torch.int64, device="cpu")
        rows = indices - self.shard.start
        outside = indices[(rows < 0) | (rows >= len(self._seen))]
        if len(outside):
            raise ValueError(f"image {int(outside[0])} is outside shard [{self.shard.start}, {self.shard.stop})")
        counts = torch.bincount(rows, minlength=len(self._seen)) + self._seen
        if (counts > 1).any():
            raise ValueError(f"image {int((counts > 1).nonzero()[0]) + self.shard.start} was added twice")
        num_classes = len(self._job["id2label"])
        wrong = (labels < 0) | (labels >= num_classes)
        if len(labels) != len(indices) or wrong.any():
            place = int(wrong.nonzero()[0]) if wrong.any() else 0
            found = (
                f"label {int(labels[place])} of image {int(indices[place])}"
                if wrong.any()
                else f"{len(labels)} labels"
            )
            raise ValueError(f"{found}; expected one within [0, {num_classes}) for each of {len(indices)} images")
        if set(latents) != set(self._values):
            raise ValueError(f"latents of {sorted(latents)} were given, expected {sorted(self._values)}")
        for name, given in latents.items():
            stored = self._values[name]
            expected = (len(indices), *stored.shape[1:])
            if tuple(given.shape) != expected or not given.is_floating_point():
                raise ValueError(f"{name} is {given.dtype} {tuple(given.shape)}, expected floating-point {expected}")
            given = given.detach().to("cpu", stored.dtype)
            if not is_finite(given):
                finite = torch.isfinite(given).flatten(1).all(1)
                reason = "the encoder diverged"
                if stored.dtype != torch.float32:
                    reason += f", or it reaches beyond {stored.dtype}, and bfloat16 holds it"
                raise ValueError(f"{name} of image {int(indices[~finite][0])} is not finite; {reason}")
            stored[rows] = given
        self._labels[rows] = labels
        self._seen[rows] = True

    def __exit__(self, exception_type: type[BaseException] | None, *_: object) -> None:
        if exception_type is not None:
            return
        if not self._seen.all():
            raise ValueError(
                f"{int((~self._seen).sum())} images of shard [{self.shard.start}, {self.shard.stop}) were not added, "
                f"the first of them {int((~self._seen).nonzero()[0]) + self.shard.start}"
            )
        self._submit(self.shard, self._values, self._labels)


def is_finite(values: torch.Tensor) -> bool:
    """Whether all values are finite: extremes carry NaN along, and cost a twentieth of `isfinite` on every value."""
    return not values.numel() or all(bool(bound.isfinite()) for bound in values.aminmax())
