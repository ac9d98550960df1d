"""Settings of the measures that options of commands have too: without torch, for which `--help` need not wait."""

from ..models.efficientnet_lite_variants import EFFICIENTNET_LITES
from .names import INCEPTION

EFFICIENTNET_LITE0 = "efficientnet-lite0"
DINOV2 = "dinov2"
# Keys of [`image_encoders.ENCODERS`].
IMAGE_ENCODERS = ("convnextv2", "mae", "siglip2", "clip")
# Feature networks in whose features distances are measured, see [`features.EXTRACTORS`].
EXTRACTOR_NAMES = (INCEPTION, *EFFICIENTNET_LITES, DINOV2, *IMAGE_ENCODERS)
# Points along a side of an image at which objects are looked for: the default of SAM's authors.
OBJECT_POINTS = 32
# Fewest images of a set that is compared.
SMALLEST_SET = 8
# Sizes of the noise whose cost is measured, in units of each channel's standard deviation.
NOISE_LEVELS = (0.0, 0.05, 0.1, 0.2, 0.4, 0.8)
