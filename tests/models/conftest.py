"""Tiny models: every part of the architecture, milliseconds per call."""

from pathlib import Path

import numpy as np
import pytest
import skimage
import torch
from PIL import Image
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from tcae_diffusers import AutoencoderTC

_TINY = {
    "sample_size": 32,
    "spatial_compression_ratio": 8,
    "patch_size": 2,
    "latent_channels": 8,
    "hidden_size": 32,
    "num_attention_heads": 2,
    "encoder_num_layers": (2, 1),
}


@pytest.fixture
def tiny_config() -> dict:
    return dict(_TINY)


@pytest.fixture
def make_tiny_tcae():
    """Builds a tiny model in eval mode, with weights and latent statistics that a missing part would betray."""

    def make(**overrides) -> AutoencoderTC:
        torch.manual_seed(0)
        model = AutoencoderTC(**{**_TINY, **overrides}).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 1:  # biases and norms start as zeros and ones, which would hide a mix-up
                    parameter.add_(0.1 * torch.randn_like(parameter))
        channels = model.config.latent_channels
        model.set_latent_statistics(torch.randn(channels), 0.5 + torch.rand(channels))
        return model

    return make


@pytest.fixture
def tiny_tcae(make_tiny_tcae) -> AutoencoderTC:
    return make_tiny_tcae()


def _photograph(name: str, size: int | None = None) -> torch.Tensor:
    image = Image.open(Path(skimage.__file__).parent / "data" / name).convert("RGB")
    if size is not None:
        image = image.resize((size, size), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 127.5 - 1


@pytest.fixture(scope="session")
def photograph():
    """`photograph(name, size)`: one of scikit-image's photographs as `(1, 3, H, W)` in [-1, 1], scaled if asked."""
    return _photograph


@pytest.fixture(scope="session")
def tcae_of_photographs() -> AutoencoderTC:
    """A small model that has seen crops of three photographs for some seconds, so that its output means something."""
    torch.manual_seed(0)
    model = AutoencoderTC(
        sample_size=64,
        spatial_compression_ratio=16,
        patch_size=8,
        latent_channels=32,
        hidden_size=96,
        num_attention_heads=3,
        encoder_num_layers=(1, 1),
    )
    photographs = [
        _photograph(name, size) for name in ("astronaut.png", "chelsea.png", "coffee.png") for size in (384, 768)
    ]
    generator = torch.Generator().manual_seed(0)

    def crop() -> torch.Tensor:
        image = photographs[int(torch.randint(len(photographs), (), generator=generator))]
        top, left = torch.randint(image.shape[-1] - 64, (2,), generator=generator).tolist()
        return image[:, :, top : top + 64, left : left + 64]

    steps = 250
    optimizer = torch.optim.AdamW(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.1)
    for _ in range(steps):
        images = torch.cat([crop() for _ in range(16)])
        optimizer.zero_grad()
        (model(images).sample - images).square().mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        raw = model.forward_features(torch.cat([crop() for _ in range(64)])).latent
    model.set_latent_statistics(raw.mean((0, 2, 3)), raw.std((0, 2, 3)))
    return model.eval().requires_grad_(False)


class LiveTensors(TorchDispatchMode):
    """
    Follows the storages that operations make, without keeping them alive: `alive()` in bytes, and their `peak`.
    Storages of the tensors to `ignore` (the weights) are not counted.
    """

    def __init__(self, ignore=()):
        super().__init__()
        self._ignored = {StorageWeakRef(tensor.untyped_storage()).cdata for tensor in ignore}
        self._storages = {}
        self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        outputs = func(*args, **(kwargs or {}))
        for output in outputs if isinstance(outputs, tuple | list) else (outputs,):
            if isinstance(output, torch.Tensor):
                reference = StorageWeakRef(output.untyped_storage())
                if reference.cdata not in self._ignored:
                    self._storages[reference.cdata] = (reference, output.untyped_storage().nbytes())
        self.peak = max(self.peak, self.alive())
        return outputs

    def alive(self) -> int:
        self._storages = {key: entry for key, entry in self._storages.items() if not entry[0].expired()}
        return sum(size for _, size in self._storages.values())


@pytest.fixture(scope="session")
def live_tensors():
    return LiveTensors
