"""Hashes of a model: its config and its weights."""

from collections.abc import Mapping
from typing import Any

import torch

from ..files import sha256_of_json, sha256_of_tensors


def config_sha256(config: Mapping[str, Any]) -> str:
    """sha256 of a config mapping, without entries that begin with an underscore."""
    return sha256_of_json({key: value for key, value in dict(config).items() if not key.startswith("_")})


def model_fingerprint(model: torch.nn.Module) -> dict[str, str]:
    """`config_sha256` and `weights_sha256` of a model: equal weights have equal hashes, wherever they are stored."""
    return {
        "config_sha256": config_sha256(getattr(model, "config", {})),
        "weights_sha256": sha256_of_tensors(model.state_dict()),
    }
