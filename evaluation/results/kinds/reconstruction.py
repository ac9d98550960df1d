"""How well an autoencoder gives images back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from ...report.embedding import embed_png
from ..result import Card
from .autoencoder import AutoencoderResult


@dataclass(kw_only=True)
class ReconstructionResult(AutoencoderResult):
    """
    Result of `reconstruction`.

    Args:
        not_measured (`dict[str, str]`): What a reader may miss, and why it is not there.
        uint8_rule (`str`): How outputs became bytes.
        psnr_percentiles (`dict[str, float]`): In dB, over images.
        grid_indices, worst_indices, best_indices (`list[int]`): The pictured images.
    """

    kind: ClassVar[str] = "reconstruction"
    template: ClassVar[str] = "reconstruction.html"

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
        what = "images it was not trained on" if "heldout" in spec else f"images of {spec}"
        note = f"on {figure.samples:,} {what}"
        if figure.baseline is not None:
            note += f"; showing the mean image gives {figure.baseline.value:.1f} dB"
        return [Card(f"{figure.value:.1f} dB", "reconstruction, PSNR", note)]

    def shown(self) -> dict[str, Any]:
        names = ("grid", "best", "worst")
        return {"pictures": {name: embed_png(self.folder / f"reconstruction_{name}.png") for name in names}}
