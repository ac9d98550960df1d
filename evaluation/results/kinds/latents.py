"""The shape of an autoencoder's latent space."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any, ClassVar

from ...report.charts import line_chart
from ...report.embedding import embed_png
from .autoencoder import AutoencoderResult


@dataclass(kw_only=True)
class LatentsResult(AutoencoderResult):
    """
    Result of `latents`.

    Args:
        channels, equivariance, noise: See [`LatentDiagnostics`].
        picture (`str`, *optional*), picture_rows (`list[str]`): File with tokens and latents in colours, and what each
            row of it shows.
    """

    kind: ClassVar[str] = "latents"
    template: ClassVar[str] = "latents.html"

    channels: dict[str, Any]
    equivariance: dict[str, dict[str, float]]
    noise: list[dict[str, float]]
    picture: str | None = None
    picture_rows: list[str] = field(default_factory=list)

    def describe(self) -> list[str]:
        channels = self.channels
        return [
            f"effective rank {channels['effective_rank']:.1f} of {channels['channels']} channels, isotropy "
            f"{channels['isotropy']:.3f}, dead channels {len(channels['dead_channels'])}",
            *(
                f"{name}: cosine {values['cosine']:.3f}, nearest neighbour is its own counterpart "
                f"{values['nearest']:.1%}"
                for name, values in self.equivariance.items()
            ),
            *("  ".join(f"{key} {value:.4g}" for key, value in point.items()) for point in self.noise),
        ]

    def shown(self) -> dict[str, Any]:
        picture = self.picture and embed_png(self.folder, self.picture)
        return {"charts": [self._spectrum_chart(), *self._noise_charts()], "picture": picture}

    def _spectrum_chart(self) -> dict[str, str]:
        cumulative = list(itertools.accumulate(self.channels["spectrum"]))
        return {
            "title": "Spectrum of the channels",
            "caption": "Share of variance in the first k principal directions of a latent vector. A straight line "
            "means that all directions are used equally; an early bend means that a few dominate.",
            "svg": line_chart({"share": (list(range(1, len(cumulative) + 1)), cumulative)}, "directions"),
        }

    def _noise_charts(self) -> list[dict[str, str]]:
        levels = [point["level"] for point in self.noise]
        return [
            {
                "title": f"{'PSNR (dB)' if name == 'psnr' else name} against noise in the latent",
                "caption": "Noise in units of each channel's standard deviation. The flatter the curve, the better "
                "the decoder tolerates the errors of a diffusion model.",
                "svg": line_chart({name: (levels, [point[name] for point in self.noise])}, "noise level"),
            }
            for name in self.noise[0]
            if name != "level"
        ]
