"""Only Inception features of 50,000 images may be called FID."""

import pytest

from tcae_diffusers.metrics.names import metric_name


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("FID", "inception", 50_000), "FID"),
        (("FID", "inception", 50_000, "g"), "gFID"),
        (("FID", "inception", 49_999), "FID-49999"),
        (("FID", "inception", 800, "r"), "rFID-800"),
        (("FID", "efficientnet-lite0", 50_000), "FD-efficientnet-lite0"),
        (("FID", "dinov2-vitl14", 800, "r"), "rFD-dinov2-vitl14"),
        (("KID", "inception", 60_000), "KID"),
        (("KID", "inception", 800), "KID-800"),
        (("KID", "efficientnet-lite0", 800, "g"), "gKID-efficientnet-lite0"),
        (("MIND", "inception", 5000, "g"), "gMIND-5000"),
        (("MIND", "efficientnet-lite0", 5000, "g"), "gMIND-efficientnet-lite0"),
        (("precision", "dinov2-vitb14", 800), "precision-dinov2-vitb14"),
        (("IS", "inception", 100), "IS-100"),
    ],
)
def test_names(arguments, expected):
    assert metric_name(*arguments) == expected
