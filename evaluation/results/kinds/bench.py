"""Speed tables of a machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..result import Result


@dataclass(kw_only=True)
class BenchResult(Result):
    """Result of `tcae_diffusers.training.bench`: `{benchmark: {what was measured: number, text or row}}`,
    where a row of a table is `{column: number or text}`."""

    kind: ClassVar[str] = "bench"
    table_template: ClassVar[str] = "bench.html"

    benchmarks: dict[str, dict[str, Any]]
