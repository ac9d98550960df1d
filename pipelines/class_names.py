"""Finding classes by name."""

import difflib
import unicodedata
from collections.abc import Mapping


class ClassNames:
    """
    Finds classes by name.

    A name is looked up as written, first among full names, then among synonyms, and then once more in both
    without regard to case and outer spaces. So a name that one class has finds it, whatever the others are called.

    Args:
        id2label (`Mapping[int, str]`):
            Class id -> name. Commas may separate synonyms (ImageNet's `"tench, Tinca tinca"`) or be part of the name.
    """

    def __init__(self, id2label: Mapping[int, str]):
        self.id2label = id2label
        self._whole: dict[str, list[int]] = {}
        self._synonyms: dict[str, list[int]] = {}
        self._folded: dict[str, list[int]] = {}
        for class_id, name in id2label.items():
            synonyms = {part.strip() for part in name.split(",")} - {name, ""}
            self._whole.setdefault(name, []).append(class_id)
            for synonym in synonyms:
                self._synonyms.setdefault(synonym, []).append(class_id)
            for folded in {_folded(each) for each in (name, *synonyms)}:
                self._folded.setdefault(folded, []).append(class_id)

    def ids_of(self, name: str) -> list[int]:
        """All classes that `name` matches equally well; more than one means that it is ambiguous."""
        return self._whole.get(name) or self._synonyms.get(name) or self._folded.get(_folded(name), [])

    def id_of(self, name: str) -> int:
        """
        The class that `name` matches.

        Raises:
            ValueError: if no class has this name (the message suggests similar ones) or several have it (it lists
            their ids).
        """
        class_ids = self.ids_of(name)
        if len(class_ids) > 1:
            meant = ", ".join(f"{class_id} ({self.id2label[class_id]!r})" for class_id in class_ids)
            raise ValueError(f"Class name {name!r} is ambiguous: it matches the ids {meant}; pass an id instead.")
        if not class_ids:
            near = difflib.get_close_matches(_folded(name), self._folded, n=5, cutoff=0.5)
            # As they are written, not in their folded form.
            near = [written for written in sorted({*self._whole, *self._synonyms}) if _folded(written) in near]
            hint = f"did you mean {', '.join(map(repr, near))}?" if near else "see pipe.labels for all names."
            raise ValueError(f"There is no class named {name!r}; {hint}")
        return class_ids[0]

    @property
    def unambiguous(self) -> dict[str, int]:
        """Every name and synonym that stands for one class -> its id, sorted by name."""
        names = sorted({*self._whole, *self._synonyms})
        return {name: class_ids[0] for name in names if len(class_ids := self.ids_of(name)) == 1}


def _folded(name: str) -> str:
    # File systems hand out composed or decomposed letters for one and the same folder name.
    return unicodedata.normalize("NFC", name.strip().casefold())
