import math

import pytest
import torch

from tcae_diffusers.self_supervision.collapse import collapse_warning, teacher_entropies

PROTOTYPES = 16


def diagnose(probabilities):
    single, mean = teacher_entropies(probabilities)
    return {"teacher_class_entropy": single.item(), "teacher_class_mean_entropy": mean.item()}


def test_entropies_are_those_of_the_definition():
    probabilities = torch.tensor([[0.5, 0.5, 0.0], [0.25, 0.25, 0.5]])
    single, mean = teacher_entropies(probabilities)
    first, second = math.log(2), 1.5 * math.log(2)
    assert single.item() == pytest.approx((first + second) / 2)
    average = [0.375, 0.375, 0.25]
    assert mean.item() == pytest.approx(-sum(p * math.log(p) for p in average))


@pytest.mark.parametrize(
    ("name", "probabilities"),
    [
        ("one-hot", torch.eye(PROTOTYPES)[[3] * 8]),
        ("uniform", torch.full((8, PROTOTYPES), 1 / PROTOTYPES)),
        ("constant", torch.softmax(torch.arange(PROTOTYPES) / 4.0, dim=0).expand(8, PROTOTYPES)),
        (None, torch.eye(PROTOTYPES)),
        (None, torch.softmax(4 * torch.randn(8, PROTOTYPES, generator=torch.Generator().manual_seed(0)), dim=1)),
    ],
)
def test_each_collapse_is_told_from_the_others_and_from_health(name, probabilities):
    warning = collapse_warning(diagnose(probabilities), PROTOTYPES)
    assert warning is None if name is None else warning.startswith(f"{name} collapse of the class tokens")


def test_patch_tokens_are_judged_by_their_own_prototypes_and_nan_is_ignored():
    diagnostics = {"teacher_patch_entropy": math.log(4), "teacher_patch_mean_entropy": math.log(4)}
    assert "uniform collapse of the patch tokens" in collapse_warning(diagnostics, PROTOTYPES, patch_out_dim=4)
    assert collapse_warning(dict.fromkeys(diagnostics, math.nan), PROTOTYPES, patch_out_dim=4) is None
