"""Muon against torch's own, against the singular value decomposition, and in what torch's does not do."""

import copy
import dataclasses

import pytest
import torch
from torch import nn

from tcae_diffusers import AutoencoderTC
from tcae_diffusers.errors import InputError
from tcae_diffusers.models.adapters import adapt
from tcae_diffusers.models.tcae.transformer_tc_dit import TCDiTTransformer2DModel
from tcae_diffusers.trainer.arguments import OptimizerArguments
from tcae_diffusers.trainer.optimizers import (
    MuonWithAdamW,
    adamw_options,
    build_optimizer,
    hidden_matrices,
    orthogonalize,
)
from tcae_diffusers.training.dit_transformers import LATENT_LAYERS

ARGUMENTS = OptimizerArguments(optimizer="muon", learning_rate=0.02, weight_decay=0.1)


def muon(*parameters, matrices=1, weight_decay=0.1):
    group = {"params": list(parameters), "matrices": matrices, "weight_decay": weight_decay}
    return MuonWithAdamW([group], **adamw_options(ARGUMENTS))


def gradients(shape, steps=3):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(shape, generator=generator) for _ in range(steps)]


def run(optimizer, parameter, steps):
    for gradient in steps:
        parameter.grad = gradient.clone()
        optimizer.step()
    return parameter.detach()


@pytest.mark.parametrize("shape", [(64, 96), (96, 64)])
def test_it_is_torchs_muon(shape):
    """Which iterates in bf16, so the updates agree to its 3 digits; without decay or momentum they would not."""
    start = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    reference = torch.optim.Muon([theirs], lr=0.02, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    moved = run(muon(ours), ours, gradients(shape)) - start
    expected = run(reference, theirs, gradients(shape)) - start
    assert (moved - expected).norm() < 0.01 * expected.norm()
    assert (expected - 0.9 * moved).norm() > 0.05 * expected.norm()


@pytest.mark.parametrize("shape", [(64, 96), (96, 64), (64, 64)])
def test_singular_vectors_stay_and_singular_values_come_near_one(shape):
    matrix = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).float()
    left, values, right = torch.linalg.svd(matrix[0], full_matrices=False)
    rotated = left.T @ orthogonalize(matrix)[0] @ right.T
    large = values > 0.05 * values.max()
    assert ((rotated.diagonal() > 0.6) & (rotated.diagonal() < 1.3))[large].all()
    assert (rotated - rotated.diagonal().diag()).abs().max() < 1e-4


def test_stacked_matrices_are_orthogonalised_one_by_one():
    start = torch.randn(3 * 64, 80, generator=torch.Generator().manual_seed(0))
    steps = gradients(start.shape)
    # Ten times the gradient changes nothing, unless it shares a norm with the others.
    steps = [torch.cat([step[:64], 10 * step[64:128], step[128:]]) for step in steps]
    fused, alone = nn.Parameter(start.clone()), [nn.Parameter(part.clone()) for part in start.chunk(3)]
    whole = run(muon(fused, matrices=3), fused, steps)
    parts = [run(muon(part), part, [step.chunk(3)[index] for step in steps]) for index, part in enumerate(alone)]
    torch.testing.assert_close(whole, torch.cat(parts))


def test_a_convolution_is_the_matrix_of_its_output_channels():
    start = torch.randn(64, 8, 3, 3, generator=torch.Generator().manual_seed(0))
    kernel, matrix = nn.Parameter(start.clone()), nn.Parameter(start.flatten(1).clone())
    moved = run(muon(kernel), kernel, gradients(start.shape))
    expected = run(muon(matrix), matrix, [step.flatten(1) for step in gradients(start.shape)])
    torch.testing.assert_close(moved.flatten(1), expected)


def small_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 8))


def built(model, edges=(), arguments=ARGUMENTS):
    return build_optimizer(arguments, [{"params": list(model.parameters()), "weight_decay": 0.1}], model, edges)


def test_the_momentum_is_that_of_the_arguments():
    optimizer = built(small_model(), arguments=dataclasses.replace(ARGUMENTS, muon_momentum=0.8))
    assert {group["momentum"] for group in optimizer.param_groups} == {0.8}


def test_a_step_that_is_not_finite_changes_neither_weights_nor_state():
    model = small_model()
    optimizer = built(model)

    def step(found):
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, float("nan") if found else 1.0)
        optimizer.found_inf = torch.tensor(found)
        optimizer.step()

    step(0.0)
    weights = copy.deepcopy(model.state_dict())
    state = copy.deepcopy(optimizer.state_dict()["state"])
    step(1.0)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    after = optimizer.state_dict()["state"]
    assert all(torch.equal(value, after[index][name]) for index in state for name, value in state[index].items())
    step(0.0)
    assert not any(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def test_vectors_and_edges_are_trained_by_adamw():
    model, plain = small_model(), small_model()
    optimizer, reference = built(model, edges=["0"]), torch.optim.AdamW(plain.parameters(), lr=0.02, weight_decay=0.1)
    reference.param_groups[0]["betas"] = (ARGUMENTS.adam_beta1, ARGUMENTS.adam_beta2)
    for _ in range(3):
        for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
            ours.grad = torch.randn(ours.shape, generator=torch.Generator().manual_seed(ours.numel()))
            theirs.grad = ours.grad.clone()
        optimizer.step()
        reference.step()
    theirs = dict(plain.named_parameters())
    equal = {name for name, value in model.named_parameters() if torch.allclose(value, theirs[name], atol=1e-6)}
    assert equal == set(theirs) - {"1.weight"}


def test_muon_that_would_train_nothing_is_refused():
    with pytest.raises(InputError, match="matrices of at least 64x64, and this model has none"):
        built(nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 8)), edges=["0"])


def names(model, edges):
    chosen = {id(weight): count for weight, count in hidden_matrices(model, edges)}
    return {name: chosen[id(value)] for name, value in model.named_parameters() if id(value) in chosen}


def test_what_muon_trains_of_an_autoencoder_lies_between_its_pixel_layers():
    """Patches of 16x16 are 768 numbers: only their names keep the two layers that touch pixels away from Muon."""
    model = AutoencoderTC(
        sample_size=32,
        patch_size=16,
        spatial_compression_ratio=32,
        hidden_size=64,
        num_attention_heads=2,
        latent_channels=64,
        encoder_num_layers=(1, 1),
        decoder_num_layers=(1, 1),
    )
    found = names(model, adapt(model).pixel_layers)
    assert "encoder.first_blocks.0.attn.to_q.weight" in found and "decoder.last_blocks.0.ff.proj_out.weight" in found
    assert "encoder.token_reduction.conv_in.weight" in found and set(found.values()) == {1}
    large = {
        name for name, value in model.named_parameters() if value.ndim > 1 and min(len(value), value[0].numel()) >= 64
    }
    assert large - set(found) == {"encoder.patch_embed.weight", "decoder.proj_out.weight"}


def test_modulation_counts_as_six_matrices_and_embeddings_are_left_alone():
    model = TCDiTTransformer2DModel(
        sample_size=4, in_channels=64, num_layers=1, num_attention_heads=2, attention_head_dim=32, num_classes=100
    )
    found = names(model, LATENT_LAYERS)
    assert found["transformer_blocks.0.modulation.weight"] == 6 and found["modulation_out.weight"] == 2
    assert not any(name.startswith(("proj_in", "proj_out", "class_embed")) for name in found)
