"""The attention kernels of the Hub that docs/using_in_diffusers.md names: known to diffusers, and equal to torch's."""

import dataclasses
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from diffusers.models import attention_dispatch
from diffusers.models.attention_dispatch import _HUB_KERNELS_REGISTRY, AttentionBackendName

from tcae_diffusers import AutoencoderTC, TCDiTTransformer2DModel

from .conftest import needs_gpus

PAGE = Path(__file__).parents[2] / "docs" / "using_in_diffusers.md"
KERNELS: dict[str, str] = dict(re.findall(r"^\| `(\w+_hub)` \| `([\w/-]+)` \|", PAGE.read_text("utf-8"), re.MULTILINE))


def outputs(device: str, dtype: torch.dtype, backend: str | None) -> list[torch.Tensor]:
    """A reconstruction and a prediction of small models with heads of 64 channels, a width that every kernel takes."""
    torch.manual_seed(0)
    vae = AutoencoderTC.from_preset("tc-ae-xs-f8c32", hidden_size=128, num_attention_heads=2)
    transformer = TCDiTTransformer2DModel.from_preset("tc-dit-s", num_layers=2, in_channels=32, num_classes=3)
    torch.nn.init.normal_(transformer.proj_out.weight)
    for block in transformer.transformer_blocks:
        torch.nn.init.normal_(block.modulation.weight, std=0.02)
    images, latents = torch.rand(2, 3, 64, 64) * 2 - 1, torch.randn(2, 32, 8, 8)
    for model in (vae, transformer):
        model.to(device, dtype).eval()
        if backend is not None:
            model.set_attention_backend(backend)
    with torch.no_grad():
        reconstruction = vae(images.to(device, dtype)).sample
        prediction = transformer(
            latents.to(device, dtype), torch.tensor([100.0, 900.0], device=device), torch.tensor([0, 3], device=device)
        ).sample
    return [reconstruction.float(), prediction.float()]


def test_every_documented_name_is_diffusers_name_for_that_repository():
    assert len(KERNELS) >= 4
    known = {backend.value: kernel.repo_id for backend, kernel in _HUB_KERNELS_REGISTRY.items()}
    assert {name: known.get(name) for name in KERNELS} == KERNELS


@pytest.mark.parametrize("name", [name for name in KERNELS if "flash" in name])
def test_a_kernel_chosen_by_name_computes_all_attention_of_both_models(name, monkeypatch):
    """With a stand-in for the kernel, which has flash-attention's signature and cannot be downloaded here."""
    shapes = []

    def kernel(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **options: object) -> torch.Tensor:
        shapes.append(tuple(q.shape))
        attended = F.scaled_dot_product_attention(*(tensor.transpose(1, 2) for tensor in (q, k, v)))
        return attended.transpose(1, 2)

    backend = AttentionBackendName(name)
    there = {"kernel_fn": kernel, "wrapped_forward_attr": None, "wrapped_backward_attr": None}
    monkeypatch.setitem(_HUB_KERNELS_REGISTRY, backend, dataclasses.replace(_HUB_KERNELS_REGISTRY[backend], **there))
    monkeypatch.setattr(attention_dispatch, "_check_attention_backend_requirements", lambda backend: None)
    expected = outputs("cpu", torch.float32, None)
    for found, whole in zip(outputs("cpu", torch.float32, name), expected, strict=True):
        torch.testing.assert_close(found, whole)
    assert shapes[-2:] == [(2, 64, 6, 64)] * 2
    blocks = AutoencoderTC.from_preset("tc-ae-xs-f8c32").config
    assert len(shapes) == 2 + sum(blocks.encoder_num_layers) + sum(blocks.decoder_num_layers)


@pytest.mark.gpu
@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_agrees_with_torchs(name):
    needs_gpus(1)
    pytest.importorskip("kernels", reason="the package that downloads kernels is not installed")
    try:
        TCDiTTransformer2DModel.from_preset("tc-dit-s", num_layers=1).set_attention_backend(name)
    except (OSError, RuntimeError, ValueError) as error:
        pytest.skip(f"{name} cannot be downloaded, or has no build for this machine: {error}")
    expected = outputs("cuda", torch.float32, None)
    for found, whole in zip(outputs("cuda", torch.bfloat16, name), expected, strict=True):
        assert (found - whole).norm() < 0.05 * whole.norm()
