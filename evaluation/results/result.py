"""What a command measured, as a type: its figures, where they come from, how it is stored and what a report shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from tcae_diffusers.errors import InputError
from tcae_diffusers.files import write_atomically, write_json, write_text
from tcae_diffusers.metrics.figure import Figure

# What a result knows while it is in memory, and its file does not hold.
UNSTORED = {"stored": False}


@dataclass(frozen=True)
class Card:
    """One of the few numbers that a report opens with."""

    value: str
    label: str
    note: str


@dataclass(frozen=True)
class FigureGroup:
    """
    Figures that a comparison sets beside those of other results.

    Args:
        kind (`str`): Of the result.
        subject (`str`): What was measured, as the comparison calls it.
        figures (`list[Figure]`): What was found.
        data (`dict`): See [`Result.measured_on`].
        conditions (`dict`): What has to agree besides data, features and numbers of images.
        folder (`Path`): Where the result lies.
        seed (`int`, *optional*): With which the subject was trained, where it was trained with several.
    """

    kind: str
    subject: str
    figures: Sequence[Figure]
    data: Mapping[str, Any]
    conditions: Mapping[str, Any]
    folder: Path
    seed: int | None = None


@dataclass(kw_only=True)
class Result:
    """
    The result of a command. A kind of result is a subclass in a file of [`results.kinds`], registered there.

    Attributes:
        kind (`str`): Its name in the file.
        template (`str`, *optional*): Of its section in a report; gets `result`, and `shown`, what [`shown`] returns.
        table_template (`str`, *optional*): Of its tables below all figures; gets the same.
        is_summary (`bool`): Whether its cards say what the cards of other results would.
        is_comparable (`bool`): Whether its figures can be set beside those of another result of its kind.

    Args:
        command, date, settings, versions, machine: See [`provenance.provenance`].
        inputs (`dict`, *optional*): Arguments and content that it was measured on, see [`resumption`].
        subject (`str`): What a comparison calls the thing that was measured.
        conditions (`dict`): What a comparison requires to agree besides data, features and numbers of images.
        path (`Path`, *optional*): The file that it was read from or saved to.
        files (`dict[str, bytes | str]`): Pictures and tables that are written into [`folder`].
    """

    kind: ClassVar[str]
    template: ClassVar[str | None] = None
    table_template: ClassVar[str | None] = None
    is_summary: ClassVar[bool] = False
    is_comparable: ClassVar[bool] = False

    command: str = ""
    date: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=dict)
    inputs: dict[str, Any] | None = None
    subject: str = field(default="", metadata=UNSTORED)
    conditions: dict[str, Any] = field(default_factory=dict, metadata=UNSTORED)
    path: Path | None = field(default=None, metadata=UNSTORED)
    files: dict[str, bytes | str] = field(default_factory=dict, metadata=UNSTORED, repr=False)

    @classmethod
    def file_name(cls) -> str:
        """What the file is called in a folder of results."""
        return f"{cls.kind}.json"

    @classmethod
    def path_in(cls, output: str | Path) -> Path:
        """The file for an output: `output` itself where it is called .json, else a file in that folder."""
        output = Path(output)
        return output if output.suffix == ".json" and not output.is_dir() else output / cls.file_name()

    @classmethod
    def from_json(cls, content: Mapping[str, Any], path: Path | None = None) -> Self:
        """Inverse of [`to_json`].

        Raises:
            InputError: If something is missing.
        """
        stored = {entry.name: entry for entry in fields(cls) if entry.metadata.get("stored", True)}
        required = [
            name
            for name, entry in stored.items()
            if entry.default is MISSING and entry.default_factory is MISSING and name not in content
        ]
        if required:
            raise InputError(f"a {cls.kind} result must have {', '.join(required)}, which this one lacks")
        return cls(**{name: content[name] for name in stored if name in content}, path=path)

    def to_json(self) -> dict[str, Any]:
        """What its file holds: `kind`, its own entries, and where they come from."""
        inherited = {entry.name for entry in fields(Result)}
        names = [entry.name for entry in fields(self) if entry.metadata.get("stored", True)]
        ordered = sorted(names, key=lambda name: name in inherited)
        content = {name: to_stored(getattr(self, name)) for name in ordered}
        if self.inputs is None:
            del content["inputs"]
        return {"kind": self.kind, **content}

    def save(self, output: str | Path) -> None:
        """Writes the files that belong to it into [`folder`], then its own to [`path_in`] of `output`."""
        self.path = self.path_in(output)
        for name, content in self.files.items():
            if isinstance(content, str):
                write_text(self.folder / name, content)
            else:
                write_atomically(self.folder / name, content)
        write_json(self.path, self.to_json())

    @property
    def folder(self) -> Path:
        """
        Folder of its pictures and tables, once it has one: the one that its file is in, or where the file was given
        another name than [`file_name`], one called after it, `a_files` for `a.json`, so that results side by side keep
        theirs apart, also from one whose output is the folder `a`.
        """
        assert self.path is not None, f"the {self.kind} result was neither read nor saved"
        if self.path.name == self.file_name():
            return self.path.parent
        return self.path.with_name(f"{self.path.stem}_files")

    def describe(self) -> list[str]:
        """Lines that the command prints."""
        return []

    def is_whole(self) -> bool:
        """Whether what it stands for is there beside it, so that it need not be made again."""
        return True

    def figures_by_subject(self) -> dict[str, list[Figure]]:
        """Its figures for the table of a report, by what they are of."""
        return {}

    def compared_figures(self) -> dict[str, list[Figure]]:
        """Its figures for a comparison, by subject."""
        return {}

    def figure_groups(self) -> list[FigureGroup]:
        """Its figures for a comparison, with what has to agree."""
        return [
            FigureGroup(self.kind, subject, figures, self.measured_on(), self.conditions, self.folder)
            for subject, figures in self.compared_figures().items()
        ]

    def measured_on(self) -> Mapping[str, Any]:
        """`spec`, `fingerprint` and `attribution` of the images that decide what its figures can be compared with."""
        return {}

    def cards(self) -> list[Card]:
        """What a report opens with."""
        return []

    def shown(self) -> dict[str, Any]:
        """Charts and pictures for [`template`] and [`table_template`]."""
        return {}


def to_stored(value: Any) -> Any:
    """A value as JSON has it: figures by their own rule, dataclasses by their fields."""
    if hasattr(value, "to_json"):
        return value.to_json()
    if is_dataclass(value):
        return {entry.name: to_stored(getattr(value, entry.name)) for entry in fields(value)}
    if isinstance(value, Mapping):
        return {key: to_stored(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_stored(item) for item in value]
    return value


def as_figures(stored: Sequence[Figure | Mapping[str, Any]]) -> list[Figure]:
    """Figures that may have been read from a file."""
    return [Figure.from_json(entry) if isinstance(entry, Mapping) else entry for entry in stored]
