"""Samples that were drawn from a pipeline, or a baseline set."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from tcae_diffusers.data.images.sample_manifest import KIND, MANIFEST
from tcae_diffusers.files import write_json

from ...pictures.sample_store import SampleStore
from ..result import UNSTORED, Result


@dataclass(kw_only=True)
class SamplesResult(Result):
    """
    Result of `generate`, the manifest of a set; no report shows it.

    Args:
        images (`int`), classes (`list[str]`): How many images, and the names of their classes.
        output (`Path`, *optional*): Where they lie.
        store ([`SampleStore`], *optional*): Holds them until they are complete; `None` if they were so before.
    """

    kind: ClassVar[str] = KIND

    images: int
    classes: list[str]
    output: Path | None = field(default=None, metadata=UNSTORED)
    store: SampleStore | None = field(default=None, metadata=UNSTORED)

    @classmethod
    def file_name(cls) -> str:
        return MANIFEST

    def describe(self) -> list[str]:
        if self.store is None:
            return [f"{self.output} is complete already"]
        return [f"{self.images} images in {self.output}"]

    def is_whole(self) -> bool:
        if self.path is None:
            return True
        files = json.loads(self.path.read_text()).get("files", [])
        return all((self.path.parent / entry["file"]).is_file() for entry in files)

    def save(self, output: str | Path) -> None:
        """Completes the set; in one that was complete before, only the inputs are noted, if there are any."""
        if self.store is not None:
            self.store.finish(self.to_json())
        elif self.inputs is not None:
            path = self.path_in(output)
            write_json(path, {**json.loads(path.read_text()), "inputs": self.inputs})
