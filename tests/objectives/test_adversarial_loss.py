"""The adversarial terms against their equations, over steps and over two ranks."""

import copy
import math

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import nn

from tcae_diffusers.models.discriminator import FrozenFeatureDiscriminator, PatchGANDiscriminator
from tcae_diffusers.objectives.adaptive_weight import adaptive_weight, adaptive_weight_from_squares
from tcae_diffusers.objectives.adversarial import (
    AdversarialLoss,
    discriminator_criterion,
    generator_criterion,
)

# Forked children run backward passes, which torch refuses once any earlier test has started autograd's threads.
pytestmark = pytest.mark.fresh_process

REAL = (torch.tensor([[1.5, 0.2], [-0.3, 0.9]]), torch.tensor([[0.4]]))
FAKE = (torch.tensor([[-1.5, 0.2], [0.7, -0.1]]), torch.tensor([[-0.6]]))


class LinearDiscriminator(nn.Module):
    """One logit per image, a weighted sum of its pixels: all gradients are known."""

    def __init__(self, size=8):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, size, size, generator=torch.Generator().manual_seed(0)))

    def forward(self, images):
        return ((images * self.weight).sum(dim=(1, 2, 3)).view(-1, 1, 1, 1),)


def images(seed, batch=4, size=8):
    return torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def mean_over_heads(function, logits):
    heads = [[function(x) for x in head.flatten().tolist()] for head in logits]
    return sum(sum(head) / len(head) for head in heads) / len(heads)


@pytest.mark.parametrize(
    ("kind", "on_real", "on_fake", "of_generator"),
    [
        ("hinge", lambda x: max(0, 1 - x), lambda x: max(0, 1 + x), lambda x: -x),
        (
            "non_saturating",
            lambda x: -math.log(1 / (1 + math.exp(-x))),
            lambda x: -math.log(1 - 1 / (1 + math.exp(-x))),
            lambda x: -math.log(1 / (1 + math.exp(-x))),
        ),
    ],
)
def test_criteria_equal_their_definitions(kind, on_real, on_fake, of_generator):
    expected = 0.5 * (mean_over_heads(on_real, REAL) + mean_over_heads(on_fake, FAKE))
    assert discriminator_criterion(kind, REAL, FAKE).item() == pytest.approx(expected, rel=1e-5)
    assert generator_criterion(kind, FAKE).item() == pytest.approx(mean_over_heads(of_generator, FAKE), rel=1e-5)


def test_adaptive_weight_is_the_ratio_of_gradients_at_the_last_layer():
    layer = nn.Linear(3, 2, bias=False).double()
    inputs = torch.randn(5, 3, dtype=torch.double)
    outputs = layer(inputs)
    reconstruction, adversarial = outputs.square().mean(), 0.01 * outputs.mean()
    found = adaptive_weight(reconstruction, adversarial, layer.weight)
    grad_reconstruction = (2 * outputs / outputs.numel()).T @ inputs
    grad_adversarial = (0.01 * torch.ones_like(outputs) / outputs.numel()).T @ inputs
    expected = grad_reconstruction.norm() / (grad_adversarial.norm() + 1e-4)
    assert found.item() == pytest.approx(expected.item(), rel=1e-4)
    assert not found.requires_grad and layer.weight.grad is None
    at_output = adaptive_weight(reconstruction, adversarial, outputs)
    of_reconstruction, of_adversary = (2 * outputs / 10).norm(), torch.full((5, 2), 0.001).norm()
    expected = of_reconstruction / (of_adversary + 1e-4 * of_reconstruction)
    assert at_output.item() == pytest.approx(expected.item(), rel=1e-4)
    assert adaptive_weight(1e9 * reconstruction, adversarial, layer.weight).item() == 1e4


@pytest.mark.parametrize("scale", [1.0, 1e-6])
def test_adaptive_weight_at_the_output_is_that_of_the_images_and_not_of_their_number(scale):
    discriminator = LinearDiscriminator()
    target = images(1, batch=1)
    weights = []
    for repeats in (1, 8, 1024):
        sample = images(0, batch=1).repeat(repeats, 1, 1, 1).requires_grad_()
        reconstruction = scale * (sample - target).abs().mean()
        adversarial = scale * 0.01 * generator_criterion("hinge", discriminator(sample))
        weights.append(adaptive_weight(reconstruction, adversarial, sample).item())
        halves = [
            AdversarialLoss().squared_gradients(discriminator, half, (half - target).abs().mean())
            for half in sample.detach().requires_grad_().tensor_split(min(repeats, 2))
        ]
        in_passes = adaptive_weight_from_squares(sum(halves), len(halves))
        assert in_passes.item() == pytest.approx(0.01 * weights[0], rel=1e-3)
    assert weights == pytest.approx(weights[:1] * 3, rel=1e-4)


def test_adaptive_weight_at_the_output_without_gradients():
    assert adaptive_weight_from_squares(torch.tensor([0.0, 0.0])).item() == 0
    assert adaptive_weight_from_squares(torch.tensor([0.0, 1.0])).item() == 0
    assert adaptive_weight_from_squares(torch.tensor([1.0, 0.0])).item() == pytest.approx(1e4)


def test_generator_term_is_weight_times_balance_times_criterion():
    discriminator = LinearDiscriminator()
    sample = images(0).requires_grad_()
    loss_fn = AdversarialLoss(weight=0.5)
    output = loss_fn.generator_loss(discriminator, sample, sample.square().mean(), sample)
    torch.testing.assert_close(output.loss_gan, -discriminator(sample)[0].mean())
    torch.testing.assert_close(output.loss, 0.5 * output.adaptive_weight * output.loss_gan)
    fixed = AdversarialLoss(weight=0.5, adaptive=False).generator_loss(discriminator, sample)
    torch.testing.assert_close(fixed.loss, 0.5 * output.loss_gan)


def test_r1_is_the_squared_gradient_at_real_images_in_every_interval_th_step():
    discriminator = LinearDiscriminator()
    loss_fn = AdversarialLoss(r1_weight=3.0, r1_interval=4)
    outputs = [loss_fn.discriminator_loss(discriminator, images(0), images(1), step) for step in range(5)]
    expected = discriminator.weight.square().sum()
    for step, output in enumerate(outputs):
        torch.testing.assert_close(output.loss_r1, expected if step % 4 == 0 else torch.tensor(0.0))
        torch.testing.assert_close(output.loss, output.loss_gan + 0.5 * 3.0 * 4 * output.loss_r1)
    (gradient,) = torch.autograd.grad(outputs[0].loss_r1, discriminator.weight)
    torch.testing.assert_close(gradient, 2 * discriminator.weight)


def test_lecam_equals_its_definition_over_moving_averages():
    loss_fn = AdversarialLoss(lecam_weight=0.1, lecam_decay=0.9)
    discriminator = LinearDiscriminator()
    average_real = average_fake = None
    for step in range(4):
        real, fake = images(2 * step), images(2 * step + 1)
        output = loss_fn.discriminator_loss(discriminator, real, fake, step)
        real, fake = (discriminator(x)[0].flatten().double().tolist() for x in (real, fake))
        expected = 0.0
        if step:
            expected = sum(max(x - average_fake, 0) ** 2 for x in real) / 4
            expected += sum(max(average_real - x, 0) ** 2 for x in fake) / 4
        assert output.loss_lecam.item() == pytest.approx(expected, rel=1e-5)
        torch.testing.assert_close(output.loss, output.loss_gan + 0.1 * output.loss_lecam)
        loss_fn.update_statistics()
        decay = 0.9 if step else 0.0
        average_real = decay * (average_real or 0) + (1 - decay) * sum(real) / 4
        average_fake = decay * (average_fake or 0) + (1 - decay) * sum(fake) / 4
    assert loss_fn.lecam_logits.tolist() == pytest.approx([average_real, average_fake], rel=1e-5)
    assert set(loss_fn.state_dict()) == {"lecam_logits", "lecam_updates"}


def test_start_steps():
    loss_fn = AdversarialLoss(start_step=10, discriminator_start_step=6)
    active = [(loss_fn.discriminator_is_active(s), loss_fn.generator_is_active(s)) for s in (5, 6, 9, 10)]
    assert active == [(False, False), (True, False), (True, False), (True, True)]
    assert not AdversarialLoss(weight=0).discriminator_is_active(100)


def test_diff_augment_is_applied_to_both_sides_from_the_given_generator():
    discriminator = PatchGANDiscriminator(base_channels=4, num_layers=1)
    loss_fn = AdversarialLoss(augment=("color", "translation", "cutout"), adaptive=False)
    real, fake = images(0, size=16), images(1, size=16)

    def losses(seed):
        generator = torch.Generator().manual_seed(seed)
        of_discriminator = loss_fn.discriminator_loss(discriminator, real, fake, 0, generator).loss
        return of_discriminator.item(), loss_fn.generator_loss(discriminator, fake, generator=generator).loss.item()

    assert losses(0) == losses(0)
    assert all(a != b for a, b in zip(losses(0), losses(1), strict=True))
    with pytest.raises(ValueError, match=r"a torch\.Generator is needed"):
        loss_fn.generator_loss(discriminator, fake)


def test_a_frozen_backbone_feeds_the_heads_and_stays_out_of_the_state():
    class Backbone(nn.Module):
        feature_channels = (3, 3)

        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1).requires_grad_(False)

        def forward(self, x):
            return [self.conv(x), self.conv(x)[:, :, ::2, ::2]]

    backbone = Backbone()
    loss_fn = AdversarialLoss(feature_backbone=backbone, adaptive=False, r1_weight=1.0).to(torch.float64)
    assert backbone.conv.weight.dtype == torch.float64, "it moves with the loss"
    loss_fn.to(torch.float32)
    discriminator = FrozenFeatureDiscriminator(list(backbone.feature_channels))
    output = loss_fn.discriminator_loss(discriminator, images(0), images(1), 0)
    output.loss.backward()
    assert all(p.grad is not None for p in discriminator.parameters()) and output.loss_r1 > 0
    assert not any("conv" in name for name in loss_fn.state_dict())


def test_r1_goes_through_the_attention_of_a_transformer():
    class Backbone(nn.Module):
        feature_channels = (3,)

        def forward(self, x):
            # Contiguous, as queries of a network are: of others no fused kernel is chosen.
            tokens = x.flatten(2).transpose(1, 2)[:, None].contiguous()
            attended = F.scaled_dot_product_attention(tokens, tokens, tokens)
            return [attended[:, 0].transpose(1, 2).unflatten(2, x.shape[2:])]

    loss_fn = AdversarialLoss(feature_backbone=Backbone(), adaptive=False, r1_weight=1.0)
    discriminator = FrozenFeatureDiscriminator([3])
    output = loss_fn.discriminator_loss(discriminator, images(0), images(1), 0)
    output.loss.backward()
    assert output.loss_r1 > 0 and all(p.grad is not None for p in discriminator.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "wgan"}, "adversarial loss is 'wgan'; expected one of hinge"),
        ({"weight": -1}, "weight is -1"),
        ({"augment": ("flip",)}, "augment has 'flip'"),
        ({"r1_interval": 0}, "r1_interval is 0"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        AdversarialLoss(**options)
    with pytest.raises(ValueError, match="adaptive weight needs reconstruction_loss"):
        AdversarialLoss().generator_loss(LinearDiscriminator(), images(0))


def play(share, discriminator, decoder, unwrapped):
    """Two steps of the game with augmentation seeded per image; what must not depend on the number of ranks."""
    loss_fn = AdversarialLoss(lecam_weight=0.1, r1_weight=1.0, r1_interval=2, augment=("color", "translation"))
    optimizer = torch.optim.SGD(discriminator.parameters(), lr=0.05)
    results = []
    for step in range(3):
        target = images(step)[share]
        sample = decoder(target)

        def generators(offset, step=step):
            return [torch.Generator().manual_seed(100 * step + offset + i) for i in range(4)[share]]

        reconstruction = (sample - target).abs().mean()
        output = loss_fn.generator_loss(unwrapped, sample, reconstruction, decoder.weight, generators(0))
        by_sample = adaptive_weight(reconstruction, output.loss_gan, sample)
        loss = loss_fn.discriminator_loss(discriminator, target, sample, step, generators(10)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss_fn.update_statistics()
        results.append(torch.stack([output.adaptive_weight, by_sample, *loss_fn.lecam_logits]))
    return torch.stack(results).detach(), unwrapped.state_dict()


def make_players():
    torch.manual_seed(0)
    return PatchGANDiscriminator(base_channels=4, num_layers=1, norm_type="group"), nn.Conv2d(3, 3, 1)


def run_rank(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    discriminator, decoder = make_players()
    wrapped = nn.parallel.DistributedDataParallel(discriminator)
    torch.save(play(slice(2 * rank, 2 * rank + 2), wrapped, decoder, discriminator), folder / f"rank{rank}.pt")
    dist.destroy_process_group()


def test_two_ranks_equal_one_process_in_weights_balance_and_averages(tmp_path):
    mp.start_processes(run_rank, args=(tmp_path,), nprocs=2, start_method="fork")
    discriminator, decoder = make_players()
    before = copy.deepcopy(discriminator.state_dict())
    expected, state = play(slice(0, 4), discriminator, decoder, discriminator)
    for rank in range(2):
        results, weights = torch.load(tmp_path / f"rank{rank}.pt")
        torch.testing.assert_close(results, expected, rtol=1e-4, atol=1e-6)
        for name, weight in weights.items():
            torch.testing.assert_close(weight, state[name], rtol=1e-4, atol=1e-6)
    assert all(not torch.equal(state[name], before[name]) for name in state)
