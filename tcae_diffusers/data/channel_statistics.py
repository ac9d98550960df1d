"""Per-channel mean and standard deviation in float64, mergeable without loss over shards and ranks."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class ChannelStatistics:
    """Count, mean and summed squared deviation of each channel.

    Args:
        count (`int`): Values per channel.
        mean (`torch.Tensor`): float64 `(C,)`.
        squared_deviation (`torch.Tensor`): float64 `(C,)`, the sum of `(x - mean)**2`.
    """

    count: int
    mean: torch.Tensor
    squared_deviation: torch.Tensor

    @classmethod
    def of(cls, latents: torch.Tensor) -> "ChannelStatistics":
        """Statistics of `(N, C, ...)` latents in two passes. Channels are taken one by one, to bound the memory."""
        channels = [channel.double() for channel in latents.unbind(1)]
        mean = torch.stack([channel.mean() for channel in channels])
        squared = torch.stack([(c - m).square_().sum() for c, m in zip(channels, mean, strict=True)])
        return cls(latents.numel() // latents.shape[1], mean, squared)

    def merge(self, other: "ChannelStatistics") -> "ChannelStatistics":
        """Statistics of both sets together (Chan, Golub and LeVeque, 1979), free of cancellation."""
        count = self.count + other.count
        delta = other.mean - self.mean
        return ChannelStatistics(
            count,
            self.mean + delta * (other.count / count),
            self.squared_deviation + other.squared_deviation + delta**2 * (self.count * other.count / count),
        )

    @property
    def std(self) -> torch.Tensor:
        """Population standard deviation, float64 `(C,)`."""
        return (self.squared_deviation / self.count).sqrt()

    def to_dict(self) -> dict:
        """JSON-ready; floats survive the round trip exactly."""
        return {
            "count": self.count,
            "mean": self.mean.tolist(),
            "squared_deviation": self.squared_deviation.tolist(),
        }

    @classmethod
    def from_dict(cls, values: dict) -> "ChannelStatistics":
        tensors = {name: torch.tensor(values[name], dtype=torch.float64) for name in ("mean", "squared_deviation")}
        return cls(values["count"], **tensors)
