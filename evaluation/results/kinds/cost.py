"""What autoencoders and diffusion transformers cost."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from ..result import Result

_HEADS = ("encode", "decode", "total", "parameters", "inference", "training")


@dataclass(kw_only=True)
class CostResult(Result):
    """
    Result of `cost`.

    Args:
        height, width (`int`): Of the image that was counted, in pixels.
        autoencoders (`dict[str, dict]`): Per name an [`AutoencoderCost`] with `total_macs` and, where it was asked
            for, `latency`.
        transformers (`dict[str, dict]`): Per name a [`TransformerCost`].
    """

    kind: ClassVar[str] = "cost"
    table_template: ClassVar[str] = "cost.html"

    height: int
    width: int
    autoencoders: dict[str, dict[str, Any]]
    transformers: dict[str, dict[str, Any]] = field(default_factory=dict)

    def describe(self) -> list[str]:
        heads = " ".join(f"{head:>10}" for head in _HEADS)
        lines = [f"{'autoencoder':28} {heads}  latent at {self.height}x{self.width}"]
        for name, cost in self.autoencoders.items():
            lines.append(_autoencoder_line(name, cost))
            if "latency" in cost:
                lines.append("    " + "  ".join(f"{key} {value:.4g}" for key, value in cost["latency"].items()))
        lines += [_transformer_line(name, cost) for name, cost in self.transformers.items()]
        return [
            *lines,
            "MACs (multiply-accumulates) for one image, including attention products. inference: largest total of",
            "intermediate tensors alive at once; training: what autograd keeps. MiB in the weights' precision, one"
            " image.",
        ]


def _autoencoder_line(name: str, cost: dict[str, Any]) -> str:
    macs = " ".join(f"{cost[f'{part}_macs'] / 1e9:8.2f}G" for part in ("encode", "decode", "total"))
    peak = max(cost["encode_peak_bytes"], cost["decode_peak_bytes"]) / 2**20
    kept = cost["saved_training_bytes"] / 2**20
    latent = "x".join(map(str, cost["latent_shape"]))
    return f"{name[-28:]:28}  {macs} {cost['parameters'] / 1e6:9.2f}M {peak:9.0f}M {kept:9.0f}M  {latent}"


def _transformer_line(name: str, cost: dict[str, Any]) -> str:
    peak, kept = cost["peak_inference_bytes"] / 2**20, cost["saved_training_bytes"] / 2**20
    return (
        f"{name[-28:]:28} {cost['macs'] / 1e9:8.2f}G per step, {cost['parameters'] / 1e6:.2f}M parameters, "
        f"activations {peak:.1f}M, kept for training {kept:.0f}M"
    )
