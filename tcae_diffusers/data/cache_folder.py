"""The folder in which this package caches rasterised images, features and file hashes."""

import os
from pathlib import Path


def default_cache_dir() -> Path:
    """`$TCAE_CACHE`, else `$XDG_CACHE_HOME/tcae_diffusers`, else `~/.cache/tcae_diffusers`."""
    if os.environ.get("TCAE_CACHE"):
        return Path(os.environ["TCAE_CACHE"]).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "tcae_diffusers"
