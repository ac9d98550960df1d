"""Which images of a set a picture shows."""

from __future__ import annotations

from tcae_diffusers.data.images.image_sets import ImageSet


def spread_indices(images: ImageSet, count: int) -> list[int]:
    """`count` indices that visit the classes in turn (evenly through the set where there are no labels)."""
    count = min(count, len(images))
    if images.labels is None:
        return [index * len(images) // count for index in range(count)]
    of_class: dict[int, list[int]] = {}
    for index, label in enumerate(images.labels):
        of_class.setdefault(label, []).append(index)
    turns = -(-count // len(of_class))
    # Evenly spaced within a class: neighbours in a set are often near-duplicates (skin tones, frames of a film).
    columns = []
    for members in of_class.values():
        steps = min(turns, len(members))
        columns.append([members[step * len(members) // steps] for step in range(steps)])
    chosen = [column[turn] for turn in range(turns) for column in columns if turn < len(column)][:count]
    # Small classes leave places, which the others fill.
    left = [index for index in range(len(images)) if index not in set(chosen)]
    missing = count - len(chosen)
    return chosen + [left[place * len(left) // missing] for place in range(missing)]
