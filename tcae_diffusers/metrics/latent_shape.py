"""What the covariance of its channels says about the use of a latent space."""

from __future__ import annotations

from typing import Any

import numpy as np

from .frechet import FrechetStatistics

# A channel that varies less than this share of the median channel carries nothing.
DEAD_CHANNEL_SHARE = 0.01


def spectrum_figures(covariance: np.ndarray) -> dict[str, Any]:
    """What the eigenvalues of a channel covariance `(c, c)` say about the use of the space.

    Returns:
        `effective_rank` (exponential of the entropy of the normalised spectrum, Roy and Vetterli 2007; between 1 and
        c), `participation_ratio` (`(sum l)^2 / sum l^2`), `isotropy` (geometric over arithmetic mean of the
        eigenvalues; 1 is a sphere, 0 a degenerate space), and `spectrum`, the eigenvalues as shares in falling order.
    """
    eigenvalues = np.linalg.eigvalsh(covariance)[::-1].clip(min=0)
    total = eigenvalues.sum()
    if total <= 0:
        return {
            "effective_rank": 0.0,
            "participation_ratio": 0.0,
            "isotropy": 0.0,
            "spectrum": [0.0] * len(eigenvalues),
        }
    share = eigenvalues / total
    positive = share[share > 0]
    geometric = np.exp(np.log(share).mean()) if (share > 0).all() else 0.0
    return {
        "effective_rank": float(np.exp(-(positive * np.log(positive)).sum())),
        "participation_ratio": float(1 / np.square(share).sum()),
        "isotropy": float(geometric * len(share)),
        "spectrum": share.tolist(),
    }


def channel_figures(statistics: FrechetStatistics) -> dict[str, Any]:
    """Per-channel deviation, dead channels, and the spectrum, from moments over all positions of all images."""
    covariance = statistics.covariance
    std = np.sqrt(np.diag(covariance))
    dead = std <= DEAD_CHANNEL_SHARE * np.median(std)
    return {
        "channels": len(std),
        "channel_mean": statistics.mean.tolist(),
        "channel_std": std.tolist(),
        "dead_channels": np.flatnonzero(dead).tolist(),
        **spectrum_figures(covariance),
    }
