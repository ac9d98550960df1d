"""What a figure may be called.

`FID` means: Inception-v3 features and at least 50,000 images. Everything else says so in its name, so that a number of
ours can never be read as one of a paper: `FID-800` is Inception on 800 images (biased upwards by the small number),
`FD-efficientnet-lite0` or `FD-dinov2-vitb14` is the same distance in another feature space, whose scale is not
comparable at all, so the whole network is named.
"""

INCEPTION = "inception"
FULL_SAMPLE_COUNT = 50_000


def metric_name(metric: str, extractor: str, samples: int, prefix: str = "") -> str:
    """Name of a figure.

    Args:
        metric: `FID`, `FID-inf` (extrapolated to infinitely many images), `KID`, `MIND`, `IS`, `precision`,
            `recall`, `density` or `coverage`.
        extractor: Name of the feature network, see [`features.FeatureNetwork`].
        samples: Number of images behind the figure (the smaller side, if both sides are images).
        prefix: `r` for reconstructions, `g` for generated images, or nothing.

    Returns:
        For example `FID`, `rFID-256`, `gFD-efficientnet-lite0`, `KID-800`, `precision-efficientnet-lite0`.
    """
    if extractor != INCEPTION:
        base = metric.replace("FID", "FD")
        return f"{prefix}{base}-{extractor}"
    if samples < FULL_SAMPLE_COUNT:
        return f"{prefix}{metric}-{samples}"
    return f"{prefix}{metric}"
