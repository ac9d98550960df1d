"""LDS, CDS, SRSS and RMSC against loops over pairs of tokens, and on tokens whose answer is known."""

import itertools
import math

import numpy as np
import pytest
import torch

from tcae_diffusers.data.images.image_sets import open_labelled_source
from tcae_diffusers.metrics.encoded_images import extract, plan_structure
from tcae_diffusers.metrics.token_measures import TOKEN_MEASURES, TokenMap
from tcae_diffusers.metrics.token_structure import StructurePlan

LDS, CDS, SRSS, RMSC = TOKEN_MEASURES
LEFT_HALF = torch.zeros(2, 12, 12, dtype=torch.bool)
LEFT_HALF[:, :, :6] = True


def by_loops(values: np.ndarray, inside: np.ndarray) -> dict[str, float]:
    """Of the tokens `(D, h, w)` of one image, an object of which covers those of `inside` `(h, w)`; by definition."""
    dimensions, height, width = values.shape
    positions = list(itertools.product(range(height), range(width)))
    tokens = {(row, column): values[:, row, column] for row, column in positions}
    unit = {place: token / math.sqrt(sum(token**2)) for place, token in tokens.items()}
    near, far = [], []
    at_distance: dict[int, list[float]] = {}
    of_object = {place: ([], []) for place in positions if inside[place]}
    for first, second in itertools.permutations(positions, 2):
        distance = abs(first[0] - second[0]) + abs(first[1] - second[1])
        cosine = float(sum(unit[first][channel] * unit[second][channel] for channel in range(dimensions)))
        (near if distance < min(height, width) / 2 else far).append(cosine)
        at_distance.setdefault(distance, []).append(cosine)
        if inside[first] and inside[second] and distance <= min(height, width) / 2:
            of_object[first][0].append(cosine)
        if inside[first] and not inside[second] and distance >= min(height, width) / 2:
            of_object[first][1].append(cosine)
    steps = [step for step in range(1, 9) if step in at_distance]
    slope = np.polyfit(steps, [np.mean(at_distance[step]) for step in steps], 1)[0]
    mean = sum(unit.values()) / len(positions)
    spread = [sum((token - mean) ** 2) for token in unit.values()]
    contrasts = [np.mean(within) - np.mean(across) for within, across in of_object.values() if within and across]
    return {
        "LDS": np.mean(near) - np.mean(far),
        "CDS": -slope,
        "SRSS": np.mean(contrasts),
        "RMSC": math.sqrt(np.mean(spread)),
    }


@pytest.mark.parametrize("grid", [(3, 3), (4, 4), (7, 7), (4, 6), (12, 5)])
def test_they_are_what_loops_over_all_pairs_give(grid):
    values = torch.randn(2, 5, *grid, generator=torch.Generator().manual_seed(0)) + 0.3
    # Neighbours resemble each other, as tokens do.
    values = torch.nn.functional.avg_pool2d(values, 3, stride=1, padding=1)
    # Objects of more pixels than tokens, which end inside of tokens.
    objects = torch.zeros(2, 3 * grid[0], 3 * grid[1], dtype=torch.bool)
    objects[0, : 2 * grid[0] - 1, 2:], objects[1, 5:, : grid[1] + 3] = True, True
    blocks = objects.unflatten(2, (grid[1], 3)).unflatten(1, (grid[0], 3)).double()
    inside = (blocks.sum(dim=(2, 4)) >= 4.5).numpy()
    together = TokenMap(values, objects)
    for number, image in enumerate(values):
        loops = by_loops(image.double().numpy(), inside[number])
        for measure in TOKEN_MEASURES:
            assert float(measure(together)[number]) == pytest.approx(loops[measure.name], abs=1e-12), measure.name


def test_pairs_are_counted_at_every_distance():
    tokens = TokenMap(torch.ones(1, 1, 3, 4))
    assert tokens.pair_counts.sum() == (3 * 4) ** 2
    # All cosines are 1, so that their sums are counts.
    torch.testing.assert_close(tokens.similarity_sums[0], tokens.pair_counts.double())
    assert tokens.pair_counts[[0, 1, 5]].tolist() == [12, 2 * (3 * 3 + 2 * 4), 4]


def test_equal_tokens_have_no_structure_and_lengths_do_not_matter():
    lengths = torch.rand(2, 1, 6, 6, generator=torch.Generator().manual_seed(1)) + 0.1
    direction = torch.randn(1, 8, 1, 1, generator=torch.Generator().manual_seed(2))
    for measure in TOKEN_MEASURES:
        torch.testing.assert_close(
            measure(TokenMap(lengths * direction, LEFT_HALF)), torch.zeros(2, dtype=torch.float64), atol=1e-7, rtol=0
        )
    values = torch.randn(2, 8, 6, 6, generator=torch.Generator().manual_seed(3))
    for measure in TOKEN_MEASURES:
        scaled, given = TokenMap(lengths * values, LEFT_HALF), TokenMap(values, LEFT_HALF)
        torch.testing.assert_close(measure(scaled), measure(given), atol=1e-6, rtol=0)


def test_noise_is_all_contrast_and_no_structure_and_a_known_decay_has_its_slope():
    noise = TokenMap(torch.randn(400, 64, 8, 8, generator=torch.Generator().manual_seed(4)))
    assert LDS(noise).mean() == pytest.approx(0, abs=2e-3)
    assert CDS(noise).mean() == pytest.approx(0, abs=5e-4)
    # 1 less the squared length of the mean of 64 independent unit vectors.
    assert RMSC(noise).mean() == pytest.approx(math.sqrt(1 - 1 / 64), abs=1e-3)
    # Tokens along a row are intervals of ten channels, each one channel further: cosines fall by 0.1 with each step.
    channels = torch.arange(25)
    line = torch.stack([((channels >= place) & (channels < place + 10)).float() for place in range(9)], dim=1)
    assert float(CDS(TokenMap(line[None, :, None]))) == pytest.approx(0.1, abs=1e-7)
    halves = torch.zeros(1, 2, 6, 6)
    halves[:, 0, :, :3], halves[:, 1, :, 3:] = 1, 1
    assert float(RMSC(TokenMap(halves))) == pytest.approx(math.sqrt(0.5))
    mixed = halves.flatten(2)[..., torch.randperm(36, generator=torch.Generator().manual_seed(5))].view_as(halves)
    assert float(LDS(TokenMap(halves))) > 0.3 > float(LDS(TokenMap(mixed)))
    assert float(RMSC(TokenMap(mixed))) == pytest.approx(math.sqrt(0.5))


def test_an_object_that_tokens_know_has_all_of_the_contrast_and_another_none():
    halves = torch.zeros(4, 2, 6, 6)
    halves[:, 0, :, :3], halves[:, 1, :, 3:] = 1, 1
    objects = torch.zeros(4, 12, 12, dtype=torch.bool)
    objects[0, :, :6] = True  # the left half itself
    objects[1, :6] = True  # half of each half
    objects[2, 5, 5] = True  # too small for a token
    objects[3] = True  # nothing is outside
    left, across, *undefined = SRSS(TokenMap(halves, objects)).tolist()
    assert left == pytest.approx(1) and abs(across) < 0.5 and np.isnan(undefined).all()


def test_what_a_grid_does_not_allow_is_named_with_the_reason():
    hidden = {
        "tokens": torch.rand(1, 5, 4, 4),
        "latent": torch.rand(1, 5, 2, 2),
        "class token": torch.rand(1, 5),
        "other": torch.rand(1, 17, 5),
    }
    plan = StructurePlan.of(hidden)
    assert list(plan.measures) == [
        "LDS, tokens 4x4", "CDS, tokens 4x4", "RMSC, tokens 4x4", "CDS, latent 2x2", "RMSC, latent 2x2",
    ]  # fmt: skip
    assert list(plan.not_measured) == ["SRSS", "LDS, latent 2x2", "LDS, other", "CDS, other", "RMSC, other"]
    assert "--object_finder" in plan.not_measured["SRSS"]
    assert "half the side" in plan.not_measured["LDS, latent 2x2"] and "17 tokens" in plan.not_measured["LDS, other"]
    assert CDS.why_not((1, 2)) and CDS.why_not((1, 3)) is None and LDS.why_not((1, 9)) and SRSS.why_not((1, 9))


def test_they_do_not_depend_on_the_batch_size(tiny_autoencoder, image_folder):
    images = open_labelled_source(str(image_folder), 32)
    plan = plan_structure(tiny_autoencoder, images)
    depths = [name.split(", ")[1] for name in plan.measures]
    assert depths == 3 * ["first stage 16x16"] + 3 * ["tokens 8x8"] + 3 * ["latent 4x4"]
    first, second = (extract(tiny_autoencoder, images, size, structure=plan) for size in (1, 30))
    assert len(first.structure) == 9
    for name, values in first.structure.items():
        assert values.shape == (30,)
        np.testing.assert_allclose(values, second.structure[name], atol=1e-5)
    assert extract(tiny_autoencoder, images, 30).structure == {}
    for figure in plan.figures(first.structure):
        assert figure.value == pytest.approx(first.structure[figure.name].mean())
        assert 0 < figure.interval < 0.5 and figure.samples == 30
