"""Samples of each class."""

from __future__ import annotations

from tcae_diffusers.data.images.image_sets import ImageSet

from .contact_sheet import contact_sheet, png_bytes


def sample_sheet(images: ImageSet, per_class: int = 10, classes: int = 16) -> tuple[bytes, list[str]]:
    """PNG with one row of samples per class, and the class name of each row (none where there are no labels)."""
    if images.labels is None or images.classes is None:
        count = min(per_class * 6, len(images))
        chosen = [index * len(images) // count for index in range(count)]
        rows, names = [chosen[start : start + per_class] for start in range(0, count, per_class)], []
    else:
        members: dict[int, list[int]] = {}
        for index, label in enumerate(images.labels):
            if len(members.setdefault(label, [])) < per_class:
                members[label].append(index)
        wanted = sorted(members)[:classes]
        rows, names = [members[label] for label in wanted], [images.classes[label] for label in wanted]
    return png_bytes(contact_sheet([[images[index] for index in row] for row in rows])), names
