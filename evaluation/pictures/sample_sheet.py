"""Samples of each class."""

from __future__ import annotations

from tcae_diffusers.data.images.image_sets import ImageSet

from .contact_sheet import contact_sheet, png_bytes

_COLUMNS = 10
_MOST_CLASSES = 16


def sample_sheet(images: ImageSet) -> tuple[bytes, list[str]]:
    """
    PNG with one row of samples per class, of the 16 with the most samples, and the class name of each row (none where
    there are no labels).
    """
    if images.labels is None or images.classes is None:
        count = min(_COLUMNS * 6, len(images))
        chosen = [index * len(images) // count for index in range(count)]
        rows, names = [chosen[start : start + _COLUMNS] for start in range(0, count, _COLUMNS)], []
    else:
        members: dict[int, list[int]] = {}
        for index, label in enumerate(images.labels):
            members.setdefault(label, []).append(index)
        wanted = sorted(sorted(members, key=lambda label: (-len(members[label]), label))[:_MOST_CLASSES])
        rows, names = [members[label][:_COLUMNS] for label in wanted], [images.classes[label] for label in wanted]
    return png_bytes(contact_sheet([[images[index] for index in row] for row in rows])), names
