"""The EfficientNet-Lite networks that can be chosen by name: without torch, for which `--help` need not wait."""

from typing import Literal, NamedTuple

EfficientNetLiteName = Literal["efficientnet-lite0", "efficientnet-lite1", "efficientnet-lite2"]


class EfficientNetLiteVariant(NamedTuple):
    """
    What differs between them beside the weights.

    Args:
        resolution (`int`): Side in pixels of the square that images are resized to for features of whole images. 4/7
            of what the network was trained at (224, 240 and 260 pixels), to the nearest multiple of its stride of 32:
            what small images need, at a third of the cost.
        stage_ends (`tuple[int, ...]`): Last blocks at a stride of 2, 4, 8, 16 and 32; at 32 that before the widest.
    """

    resolution: int
    stage_ends: tuple[int, ...]


EFFICIENTNET_LITES: dict[str, EfficientNetLiteVariant] = {
    "efficientnet-lite0": EfficientNetLiteVariant(resolution=128, stage_ends=(0, 2, 4, 10, 14)),
    "efficientnet-lite1": EfficientNetLiteVariant(resolution=128, stage_ends=(0, 3, 6, 14, 19)),
    "efficientnet-lite2": EfficientNetLiteVariant(resolution=160, stage_ends=(0, 3, 6, 14, 19)),
}
