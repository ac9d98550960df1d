# Copyright 2026 The tcae_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Hashes by which a result and the model that it was measured on recognise each other."""

import hashlib
import json

import torch
import torch.nn as nn


def model_fingerprint(model: nn.Module) -> dict[str, str]:
    """`config_sha256` and `weights_sha256`: the same weights give the same hash wherever they are stored."""
    config = {key: value for key, value in dict(getattr(model, "config", {})).items() if not key.startswith("_")}
    weights = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        weights.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        weights.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return {
        "config_sha256": hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode()).hexdigest(),
        "weights_sha256": weights.hexdigest(),
    }
