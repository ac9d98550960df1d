"""REPA and iREPA: which tokens are projected, what they are compared with, and what learns from it."""

import pytest
import torch

from tcae_diffusers.errors import InputError
from tcae_diffusers.models.target_tokens import resize_token_map
from tcae_diffusers.objectives.representation_alignment import RepresentationAlignment, normalize_spatially
from tcae_diffusers.training.dit_transformers import build_transformer

LATENT = (4, 4, 6)
TARGETS = torch.randn(3, 5, 4, 6, generator=torch.Generator().manual_seed(0))


def aligned(name="tc-dit", latent_shape=LATENT, patch_size=1, **options):
    """A transformer of 3 blocks whose second is aligned, with weights that are not those of adaLN-zero."""
    torch.manual_seed(0)
    transformer = build_transformer(name, latent_shape, 2, 2, 3, 2, 8, patch_size)
    for parameter in transformer.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    settings = {"layer": 2, "projector_width": 7, **options}
    return RepresentationAlignment(weight=0.5, **settings).attach(transformer.eval(), target_width=5)


def inputs(latent_shape=LATENT):
    noisy = torch.randn(3, *latent_shape, generator=torch.Generator().manual_seed(1))
    return noisy, torch.tensor([10.0, 500.0, 999.0]), torch.tensor([0, 1, 2])


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(("name", "patch_size"), [("tc-dit", 1), ("tc-dit", 2), ("dit", 1), ("dit", 2)])
@pytest.mark.parametrize("projector", ["mlp", "conv"])
def test_the_output_of_the_block_is_projected_and_the_prediction_stays(name, patch_size, projector, checkpointing):
    shape = (4, 4, 4) if name == "dit" else LATENT
    model = aligned(name, shape, patch_size, projector=projector)
    transformer, seen = model.transformer, []
    noisy, timestep, labels = inputs(shape)
    expected = transformer(noisy, timestep=timestep, class_labels=labels).sample
    handle = transformer.transformer_blocks[1].register_forward_hook(lambda *arguments: seen.append(arguments[2]))
    if checkpointing:
        transformer.enable_gradient_checkpointing()
    prediction, projected = model(noisy, timestep, labels)
    handle.remove()
    torch.testing.assert_close(prediction, expected)
    grid = (shape[1] // patch_size, shape[2] // patch_size)
    assert projected.shape == (3, 5, *grid)
    torch.testing.assert_close(projected, model.projector(seen[0], grid))
    if projector == "mlp":
        # A token is projected alone, whatever its neighbours are, to the place that it stands at.
        alone = model.projector.layers(seen[0][:, grid[1] + 1])
        torch.testing.assert_close(projected[:, :, 1, 1], alone)

    projected.square().mean().backward()
    with_gradient = {
        name.split(".")[2] for name, value in model.named_parameters() if "blocks" in name and value.grad is not None
    }
    assert with_gradient == {"0", "1"}
    assert all(parameter.grad is not None for parameter in model.projector.parameters())


def test_nothing_is_kept_between_steps_or_while_samples_are_drawn():
    model = aligned()
    model.transformer.enable_gradient_checkpointing()
    prediction, projected = model(*inputs())
    (prediction.square().mean() + projected.square().mean()).backward()
    assert model._tokens is None
    noisy, timestep, labels = inputs()
    model.transformer(noisy, timestep=timestep, class_labels=labels)
    assert model._tokens is None


def test_the_projector_is_no_part_of_the_transformer(tmp_path):
    model = aligned()
    names = {name for name, _ in model.named_parameters()}
    assert {name for name in names if name.startswith("projector.")}
    model.transformer.save_pretrained(tmp_path)
    loaded = type(model.transformer).from_pretrained(tmp_path)
    assert {f"transformer.{name}" for name, _ in loaded.named_parameters()} == {
        name for name in names if not name.startswith("projector.")
    }


def test_the_loss_reads_the_direction_of_each_token():
    alignment = RepresentationAlignment(weight=1.0, layer=1)
    assert alignment.loss(3 * TARGETS, TARGETS.half()).abs() < 1e-5
    torch.testing.assert_close(alignment.loss(-TARGETS, TARGETS), torch.tensor(2.0))
    # Half of the tokens right and half of them opposite.
    mixed = torch.cat([TARGETS[:, :, :2], -TARGETS[:, :, 2:]], dim=2)
    torch.testing.assert_close(alignment.loss(mixed, TARGETS), torch.tensor(1.0))


def test_targets_of_other_grids_are_averaged_or_interpolated():
    fine = TARGETS.repeat_interleave(2, dim=2).repeat_interleave(3, dim=3)
    noise = torch.randn_like(fine)
    blocks = noise.unflatten(3, (6, 3)).unflatten(2, (4, 2)).mean(dim=(3, 5))
    torch.testing.assert_close(resize_token_map(fine + noise, (4, 6)), TARGETS + blocks)
    ramp = torch.linspace(0, 1, 4)[None, None, :, None].expand(1, 1, 4, 4).contiguous()
    enlarged = resize_token_map(ramp, (8, 8))
    assert enlarged.shape == (1, 1, 8, 8)
    torch.testing.assert_close(enlarged[0, 0, 1:7, 3].diff(), torch.full((5,), 1 / 6))
    # One side shorter, the other longer.
    mixed = resize_token_map(ramp, (2, 8))
    torch.testing.assert_close(mixed[0, 0, :, 0], torch.tensor([1 / 6, 5 / 6]))
    assert resize_token_map(TARGETS, (4, 6)) is TARGETS
    alignment = RepresentationAlignment(weight=1.0, layer=1)
    assert alignment.loss(TARGETS, fine).abs() < 1e-5


def test_spatial_normalisation_takes_away_what_the_tokens_of_an_image_share():
    shared = torch.randn(3, 5, 1, 1, generator=torch.Generator().manual_seed(2)) * 10
    whole = normalize_spatially(TARGETS + shared, 1.0)
    torch.testing.assert_close(whole, normalize_spatially(TARGETS, 1.0), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(whole.mean(dim=(2, 3)), torch.zeros(3, 5), atol=1e-5, rtol=0)
    torch.testing.assert_close(whole.std(dim=(2, 3)), torch.ones(3, 5), atol=1e-4, rtol=0)
    part = normalize_spatially(TARGETS + shared, 0.6)
    expected = 0.4 * (TARGETS + shared).mean(dim=(2, 3)) / TARGETS.std(dim=(2, 3))
    torch.testing.assert_close(part.mean(dim=(2, 3)), expected, atol=1e-4, rtol=1e-4)
    alignment = RepresentationAlignment(weight=1.0, layer=1, spatial_normalization=0.6)
    assert alignment.loss(part, TARGETS + shared).abs() < 1e-5
    assert alignment.loss(TARGETS + shared, TARGETS + shared) > 0.01


@pytest.mark.parametrize("layer", [0, 4])
def test_a_block_that_is_not_there_is_refused(layer):
    with pytest.raises(InputError, match=rf"--repa_layer {layer} must be a block of the transformer, 1 to 3"):
        aligned(layer=layer)
