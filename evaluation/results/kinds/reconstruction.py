"""How well an autoencoder gives images back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from ...report.embedding import embed_png
from ..figure_differences import difference_from_linear
from ..result import Card
from .autoencoder import AutoencoderResult

# Its name among what was not measured.
LINEAR_BASELINE = "linear baseline"


@dataclass(kw_only=True)
class ReconstructionResult(AutoencoderResult):
    """
    Result of `reconstruction`.

    Args:
        linear_baseline (`dict`): The linear autoencoder beside which the figures are shown, empty where there is none:
            `name`, side of a `block` in pixels, `components` of each, `basis` (`"shared"` or `"per_position"`), the
            `data` that it was fitted to, and whether that is the `same_source` as the measured images.
        not_measured (`dict[str, str]`): What a reader may miss, and why it is not there.
        uint8_rule (`str`): How outputs became bytes.
        psnr_percentiles (`dict[str, float]`): In dB, over images.
        grid_indices, worst_indices, best_indices (`list[int]`): The pictured images.
    """

    kind: ClassVar[str] = "reconstruction"
    template: ClassVar[str] = "reconstruction.html"

    linear_baseline: dict[str, Any] = field(default_factory=dict)
    not_measured: dict[str, str] = field(default_factory=dict)
    uint8_rule: str = ""
    psnr_percentiles: dict[str, float] = field(default_factory=dict)
    grid_indices: list[int] = field(default_factory=list)
    worst_indices: list[int] = field(default_factory=list)
    best_indices: list[int] = field(default_factory=list)

    def cards(self) -> list[Card]:
        figure = next((figure for figure in self.figures if figure.name.startswith("PSNR")), None)
        if figure is None:
            return []
        spec = self.data["spec"]
        # What a path is called says nothing of what was trained on.
        what = "held-out images" if spec == "openmoji:heldout" else f"images of {spec}"
        note = f"on {figure.samples:,} {what}"
        if figure.baseline is not None:
            note += f"; showing the mean image gives {figure.baseline.value:.1f} dB"
        if figure.linear is not None:
            note += f"; the linear baseline of the same latent size reaches {figure.linear.value:.1f} dB"
        return [Card(f"{figure.value:.1f} dB", "reconstruction, PSNR", note)]

    def describe(self) -> list[str]:
        return [*super().describe(), f"{LINEAR_BASELINE}: {self._about_linear()}"]

    def _about_linear(self) -> str:
        """What the linear baseline was fitted to, or why there is none."""
        linear = self.linear_baseline
        if not linear:
            return self.not_measured.get(LINEAR_BASELINE, "not measured")
        bases = "a basis for each position" if linear["basis"] == "per_position" else "one basis for all positions"
        text = (
            f"{linear['components']} principal components of blocks of {linear['block']}×{linear['block']} pixels, "
            f"{bases}, fitted to {linear['data']['images']:,} images of {linear['data']['spec']}"
        )
        favoured = ", the source of the measured images too, which favours it"
        return text + favoured * linear["same_source"]

    def shown(self) -> dict[str, Any]:
        names = ("grid", "best", "worst", *(["linear"] if self.linear_baseline else []))
        return {
            "pictures": {name: embed_png(self.folder, f"reconstruction_{name}.png") for name in names},
            "about_linear": self._about_linear(),
            "differences_from_linear": [
                (figure, difference_from_linear("this autoencoder", figure, figure.linear))
                for figure in self.figures
                if figure.linear is not None
            ],
        }
