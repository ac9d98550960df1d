import pytest
import torch

from tcae_diffusers.objectives.diff_augment import diff_augment

POLICY = ("color", "translation", "cutout")


def generator(seed):
    return torch.Generator().manual_seed(seed)


def images(batch=4, size=16):
    return torch.rand(batch, 3, size, size, generator=generator(0)) * 2 - 1


def test_the_generator_is_the_only_source_of_randomness():
    first = diff_augment(images(), POLICY, generator(1))
    torch.manual_seed(1234)
    torch.testing.assert_close(diff_augment(images(), POLICY, generator(1)), first, rtol=0, atol=0)
    assert not torch.equal(diff_augment(images(), POLICY, generator(2)), first)


def test_one_generator_per_image_makes_the_split_over_ranks_invisible():
    whole = diff_augment(images(), POLICY, [generator(seed) for seed in range(4)])
    halves = [diff_augment(images()[i : i + 2], POLICY, [generator(i), generator(i + 1)]) for i in (0, 2)]
    torch.testing.assert_close(torch.cat(halves), whole, rtol=0, atol=0)


def test_translation_moves_the_image_whole_and_brings_in_zeros():
    size = 16
    numbered = torch.arange(1.0, size * size + 1).view(1, 1, size, size).expand(64, 3, size, size)
    moved = diff_augment(numbered, ("translation",), generator(3))
    shifts = set()
    for image in moved[:, 0]:
        row, column = (image == numbered[0, 0, 8, 8]).nonzero()[0].tolist()
        dy, dx = row - 8, column - 8
        shifts.add((dy, dx))
        expected = torch.zeros(size, size)
        for y in range(size):
            for x in range(size):
                if 0 <= y - dy < size and 0 <= x - dx < size:
                    expected[y, x] = numbered[0, 0, y - dy, x - dx]
        assert torch.equal(image, expected)
    assert {abs(s) for shift in shifts for s in shift} == {0, 1, 2}, "up to an eighth of 16"


def test_cutout_is_a_square_of_half_the_side_that_may_leave_the_image():
    holes = diff_augment(torch.ones(200, 3, 16, 16), ("cutout",), generator(4))[:, 0] == 0
    heights, widths = holes.any(dim=2).sum(dim=1), holes.any(dim=1).sum(dim=1)
    assert torch.equal(holes.sum(dim=(1, 2)), heights * widths)
    assert heights.max() == widths.max() == 8 and heights.min() >= 4


def test_color_keeps_the_structure_and_changes_the_tones():
    before, after = images(), diff_augment(images(), ("color",), generator(5))
    grey_before, grey_after = before.mean(dim=1).flatten(1), after.mean(dim=1).flatten(1)
    for a, b in zip(grey_before, grey_after, strict=True):
        assert torch.corrcoef(torch.stack([a, b]))[0, 1] > 0.9999
    assert not torch.allclose(grey_before.mean(dim=1), grey_after.mean(dim=1), atol=0.01)


def test_gradient_passes_to_every_image():
    sample = images().requires_grad_()
    diff_augment(sample, POLICY, generator(6)).square().sum().backward()
    assert (sample.grad.flatten(1).abs().sum(dim=1) > 0).all()


def test_wrong_policy_and_number_of_generators_are_named():
    with pytest.raises(ValueError, match="DiffAugment policy 'rotation' is unknown; expected color"):
        diff_augment(images(), ("rotation",), generator(0))
    with pytest.raises(ValueError, match="got 3 generators for 4 images"):
        diff_augment(images(), POLICY, [generator(0)] * 3)
