"""Alignment of a latent with the tokens of a frozen network: what it measures, up to which margins, and its weight."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tcae_diffusers.errors import InputError
from tcae_diffusers.models.frozen_network import FrozenNetwork
from tcae_diffusers.objectives.adaptive_weight import adaptive_weight
from tcae_diffusers.objectives.latent_alignment import LatentAlignment, margin_cosine, margin_distance
from tcae_diffusers.objectives.latent_shaping import Decoded, Shaped, ShapingChain


def tokens(batch=2, width=6, side=3, seed=0):
    return torch.randn(batch, width, side, side, generator=torch.Generator().manual_seed(seed))


class Network(FrozenNetwork):
    """Sees 2x2 pixels at a time."""

    name, token_width = "tiny", 6

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, self.token_width, kernel_size=2, stride=2)
        self.freeze()

    def forward(self, images):
        return self.layer(images)


def alignment(**options):
    torch.manual_seed(0)
    return LatentAlignment(Network(), latent_channels=4, **options)


def decoded(aligned, seed=0, batch=4):
    """A forward pass with a reconstruction loss that depends on the latent too."""
    latent, images = tokens(batch, 4, seed=seed).requires_grad_(), tokens(batch, 3, 6, seed=seed + 1)
    shaped = aligned(Shaped(latent, images), None, 0)
    return Decoded(shaped, latent, (latent.tanh() - 0.1).square().mean())


def test_the_cosine_of_each_position_counts_beyond_the_margin():
    wanted = tokens()
    assert margin_cosine(3 * wanted, wanted, 0.0) == pytest.approx(0, abs=1e-6)
    assert margin_cosine(-wanted, wanted, 0.0) == pytest.approx(2)
    assert margin_cosine(-wanted, wanted, 0.5) == pytest.approx(1.5)
    cosines = F.cosine_similarity(tokens(seed=1), wanted, dim=1)
    assert cosines.min() < 0.5 < 0.6 < cosines.max()
    expected = (1 - 0.5 - cosines).clamp(min=0).mean()
    torch.testing.assert_close(margin_cosine(tokens(seed=1), wanted, 0.5), expected)


def test_cosines_between_positions_count_beyond_the_margin_whatever_the_directions():
    wanted = tokens()
    rotation = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(1)))[0]
    rotated = torch.einsum("ij,bjhw->bihw", rotation, wanted)
    assert margin_distance(5 * rotated, wanted, 0.0) == pytest.approx(0, abs=1e-6)
    assert margin_cosine(rotated, wanted, 0.0) > 0.5
    found, expected = tokens(seed=2), 0.0
    for mine, theirs in zip(found.flatten(2), wanted.flatten(2), strict=True):
        for i in range(9):
            for j in range(9):
                cosines = [F.cosine_similarity(each[:, i], each[:, j], dim=0) for each in (mine, theirs)]
                expected += max(0.0, abs(cosines[0] - cosines[1]).item() - 0.25) / (2 * 81)
    assert margin_distance(found, wanted, 0.25) == pytest.approx(expected, rel=1e-4)


def test_images_of_a_batch_do_not_see_each_other():
    found, wanted = tokens(batch=4, seed=1), tokens(batch=4)
    for loss in (margin_cosine, margin_distance):
        alone = [loss(found[index : index + 1], wanted[index : index + 1], 0.1) for index in range(4)]
        torch.testing.assert_close(loss(found, wanted, 0.1), torch.stack(alone).mean())


def test_losses_are_computed_in_full_precision_under_autocast():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for loss in (margin_cosine, margin_distance):
            within = loss(tokens(seed=1), tokens(), 0.1)
            assert within.dtype == torch.float32
            with torch.autocast("cpu", enabled=False):
                assert torch.equal(loss(tokens(seed=1), tokens(), 0.1), within)


def test_the_projection_learns_the_network_does_not_and_the_latent_is_decoded_as_it_is():
    aligned = alignment()
    latent, images = tokens(2, 4).requires_grad_(), tokens(2, 3, 6)
    shaped = aligned(Shaped(latent, images), None, 0)
    assert shaped.latent is latent and shaped.target is images
    sum(shaped.losses.values()).backward()
    assert aligned.projection.weight.grad.abs().sum() > 0 and latent.grad.abs().sum() > 0
    assert [name for name, _ in aligned.named_parameters()] == ["projection.weight"]
    assert aligned.frozen_network.layer.weight.grad is None


def test_tokens_of_another_grid_are_averaged():
    aligned = alignment()
    shaped = aligned(Shaped(tokens(2, 4, side=3), tokens(2, 3, 12)), None, 0)
    assert all(loss.isfinite() for loss in shaped.losses.values())


def test_the_weight_makes_the_gradients_at_the_latent_alike():
    aligned = alignment(weight=0.3)
    seen = decoded(aligned)
    loss, logged = ShapingChain([aligned]).loss(seen)
    unweighted = seen.shaped.losses["alignment_cosine"] + seen.shaped.losses["alignment_distance"]
    assert logged["train/loss_alignment_cosine"] is seen.shaped.losses["alignment_cosine"]
    norms = [
        torch.autograd.grad(term, seen.latent, retain_graph=True)[0].norm()
        for term in (seen.reconstruction_loss, unweighted)
    ]
    torch.testing.assert_close(logged["train/alignment_weight"], norms[0] / norms[1], rtol=1e-3, atol=0)
    torch.testing.assert_close(loss, 0.3 * logged["train/alignment_weight"] * unweighted)
    assert not logged["train/alignment_weight"].requires_grad


def test_several_passes_share_the_weight_of_all_their_images():
    aligned = alignment()
    passes = [decoded(aligned, seed=seed, batch=2) for seed in range(3)]
    aligned.begin_step(lambda: iter(passes), 3)
    shared = [aligned.loss(seen)[1]["train/alignment_weight"] for seen in passes]
    assert shared[0] == shared[1] == shared[2]
    # One pass over the same images, with one latent that all of its losses are taken at.
    latent = torch.cat([seen.latent.detach() for seen in passes]).requires_grad_()
    images = torch.cat([seen.shaped.target for seen in passes])
    whole = aligned(Shaped(latent, images), None, 0)
    expected = adaptive_weight((latent.tanh() - 0.1).square().mean(), sum(whole.losses.values()), latent)
    torch.testing.assert_close(shared[0], expected)
    # The next step has a single pass, with a weight of its own.
    aligned.begin_step(lambda: pytest.fail("a single pass needs no other"), 1)
    assert aligned.loss(passes[0])[1]["train/alignment_weight"] != shared[0]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"weight": 0}, "weight is 0"),
        ({"cosine_margin": -0.1}, "cosine_margin is -0.1"),
        ({"distance_margin": 1.1}, "distance_margin is 1.1"),
    ],
)
def test_values_out_of_range_are_named(options, words):
    with pytest.raises(InputError, match=words):
        alignment(**options)
