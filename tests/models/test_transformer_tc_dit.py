"""TCDiTTransformer2DModel: its size, its parts, and what users of diffusers do with a transformer."""

import copy

import pytest
import torch
from diffusers import AutoModel

from tcae_diffusers import TC_DIT_PRESETS, TCDiTTransformer2DModel
from tcae_diffusers.models.rotary_embedding import apply_axial_rotary_embedding, axial_rotary_embedding
from tcae_diffusers.models.tcae.transformer_tc_dit import (
    TCDiTBlock,
    sincos_position_embedding,
)
from tcae_diffusers.pipelines.remote_code_export import export_with_remote_code

TINY = {
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "num_layers": 2,
    "in_channels": 4,
    "sample_size": 4,
    "num_classes": 3,
}


def make(seed=0, **config) -> TCDiTTransformer2DModel:
    """A tiny model whose zero-initialised layers are random, so that everything reaches the output."""
    torch.manual_seed(seed)
    model = TCDiTTransformer2DModel(**{**TINY, **config}).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return model


def inputs(batch=2, height=4, width=4, channels=4):
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(batch, channels, height, width, generator=generator)
    return latents, torch.linspace(100, 900, batch), torch.arange(batch) % 3


@torch.no_grad()
def predict(model, *arguments):
    return model(*arguments).sample


# Size ----------------------------------------------------------------------------------------------------------------


def parameters_of_lightning_dit(depth, dim, heads, in_channels, num_classes=1000):
    """Counted from the published architecture, layer by layer, with biases; its position table is not learned."""
    inner = int(dim * 4 * 2 / 3)
    attention = (dim * 3 * dim + 3 * dim) + (dim * dim + dim) + 2 * (dim // heads)
    feed_forward = (dim * 2 * inner + 2 * inner) + (inner * dim + dim)
    block = attention + feed_forward + 2 * dim + (dim * 6 * dim + 6 * dim)
    time = (256 * dim + dim) + (dim * dim + dim)
    final = dim + (dim * 2 * dim + 2 * dim) + (dim * in_channels + in_channels)
    return depth * block + time + (num_classes + 1) * dim + (in_channels * dim + dim) + final


@pytest.mark.parametrize("name", TC_DIT_PRESETS)
def test_presets_have_the_parameters_of_lightning_dit(name):
    depth, dim, heads = {"s": (12, 384, 6), "b": (12, 768, 12), "l": (24, 1024, 16), "xl": (28, 1152, 16)}[
        name.removeprefix("tc-dit-")
    ]
    with torch.device("meta"):
        model = TCDiTTransformer2DModel.from_preset(name, in_channels=32, sample_size=16)
    assert model.num_parameters() == parameters_of_lightning_dit(depth, dim, heads, in_channels=32)
    if name == "tc-dit-xl":
        # What LightningDiT-XL/1 is published with.
        assert abs(model.num_parameters() - 675e6) < 1e6


def test_xl_on_the_latents_of_the_papers_tokenizer():
    with torch.device("meta"):
        model = TCDiTTransformer2DModel.from_preset("tc-dit-xl")
        prediction = model(torch.empty(2, 128, 8, 8), torch.empty(2), torch.empty(2, dtype=torch.long)).sample
    assert (model.config.in_channels, model.config.sample_size, model.config.patch_size) == (128, 8, 1)
    # 96 further channels in and out: 96 * 1152 weights each, and 96 biases out.
    at_32_channels = parameters_of_lightning_dit(28, 1152, 16, in_channels=32)
    assert model.num_parameters() == at_32_channels + 2 * 96 * 1152 + 96 == 675_187_136
    assert prediction.shape == (2, 128, 8, 8)


# Parts ---------------------------------------------------------------------------------------------------------------


def test_a_new_block_is_the_identity_and_a_new_model_predicts_zero():
    torch.manual_seed(0)
    model = TCDiTTransformer2DModel(**TINY)
    tokens = torch.randn(2, 16, 32)
    block = model.transformer_blocks[0]
    assert isinstance(block, TCDiTBlock)
    assert torch.equal(block(tokens, torch.randn(2, 32), axial_rotary_embedding(4, 4, 16, 1e4, "cpu")), tokens)
    assert torch.equal(predict(model, *inputs()), torch.zeros(2, 4, 4, 4))


def test_rotary_attention_sees_offsets_and_not_places():
    height, width, head_dim = 5, 6, 8
    table = axial_rotary_embedding(height, width, head_dim, 10_000.0, "cpu")
    query, key = torch.randn(2, 1, 1, 1, head_dim)
    queries, keys = (
        apply_axial_rotary_embedding(part.expand(1, height * width, 1, head_dim), table)[0, :, 0]
        for part in (query, key)
    )
    scores = (queries @ keys.T).view(height, width, height, width)
    torch.testing.assert_close(scores[0, 0, 2, 1], scores[2, 3, 4, 4], atol=1e-5, rtol=1e-5)
    assert not torch.isclose(scores[0, 0, 2, 1], scores[0, 0, 1, 2])
    torch.testing.assert_close(queries.norm(dim=-1), query.norm().expand(30))


def test_absolute_positions_stretch_over_any_grid():
    trained = sincos_position_embedding(4, 4, 16, 4, "cpu").view(4, 4, 16)
    larger = sincos_position_embedding(12, 8, 16, 4, "cpu").view(12, 8, 16)
    # The middle of every third row is where a trained row is.
    torch.testing.assert_close(larger[1::3, 0, :8], trained[:, 0, :8], atol=1e-6, rtol=0)
    assert trained.flatten(0, 1).unique(dim=0).shape[0] == 16


@pytest.mark.parametrize("patch_size", [1, 2])
def test_without_blocks_a_patch_reaches_its_own_place_only(patch_size):
    model = make(num_layers=0, patch_size=patch_size)
    latents, timestep, labels = inputs(batch=1, height=4, width=8)
    changed = latents.clone()
    changed[:, 1, 3, 6] += 1.0
    difference = (predict(model, changed, timestep, labels) - predict(model, latents, timestep, labels)).abs()
    place = difference.amax(1)[0] > 1e-6
    top, left = 3 // patch_size * patch_size, 6 // patch_size * patch_size
    assert place[top : top + patch_size, left : left + patch_size].all()
    assert place.sum() == patch_size**2


def test_time_class_and_null_class_all_matter():
    model = make(null_class_id=1000)
    latents, timestep, _ = inputs(batch=1)
    drawn = [predict(model, latents, timestep, torch.tensor([label])) for label in (0, 1, 2, 1000)]
    drawn.append(predict(model, latents, timestep + 50, torch.tensor([0])))
    for place, first in enumerate(drawn):
        assert all(not torch.allclose(first, second, atol=1e-3) for second in drawn[:place])
    # The null class is the last row of the table, whatever its id.
    renamed = make()
    renamed.load_state_dict(model.state_dict())
    assert renamed.config.null_class_id == 3
    assert torch.equal(predict(renamed, latents, timestep, torch.tensor([3])), drawn[3])


@pytest.mark.parametrize("class_id", [3, 999, 1001, -1])
def test_an_id_of_no_class_is_not_drawn_as_the_null_class(class_id):
    latents, timestep, _ = inputs(batch=1)
    with pytest.raises(IndexError):
        predict(make(null_class_id=1000), latents, timestep, torch.tensor([class_id]))


def test_each_sample_depends_on_itself_only_and_a_scalar_timestep_is_for_all():
    model = make()
    latents, timestep, labels = inputs(batch=3)
    together = predict(model, latents, timestep, labels)
    for place in range(3):
        part = slice(place, place + 1)
        torch.testing.assert_close(together[part], predict(model, latents[part], timestep[part], labels[part]))
    same = predict(model, latents, timestep[:1].expand(3), labels)
    torch.testing.assert_close(predict(model, latents, timestep[0], labels), same)


@pytest.mark.parametrize(("height", "width"), [(4, 8), (6, 2), (1, 1)])
def test_other_sizes_than_trained(height, width):
    prediction = predict(make(), *inputs(height=height, width=width))
    assert prediction.shape == (2, 4, height, width) and torch.isfinite(prediction).all()


def test_bad_sizes_and_ids_are_named():
    with pytest.raises(ValueError, match="latent size 4x5 is not a multiple of patch_size 2"):
        make(patch_size=2)(*inputs(width=5))
    with pytest.raises(ValueError, match="attention_head_dim 10 is not a multiple of 4"):
        make(attention_head_dim=10)
    with pytest.raises(ValueError, match="null_class_id 2 is the id of a class; choose 3 or above"):
        make(null_class_id=2)
    with pytest.raises(ValueError, match="unknown preset 'tc-dit-xxl'; did you mean tc-dit-xl"):
        TCDiTTransformer2DModel.from_preset("tc-dit-xxl")


# With diffusers ------------------------------------------------------------------------------------------------------


def public(config):
    return {key: value for key, value in config.items() if not key.startswith("_")}


def test_saving_and_loading_is_exact_and_automodel_finds_the_class(tmp_path):
    model = make(out_channels=8, null_class_id=7)
    model.save_pretrained(tmp_path)
    for loader in (TCDiTTransformer2DModel, AutoModel):
        loaded = loader.from_pretrained(str(tmp_path))
        assert type(loaded) is TCDiTTransformer2DModel
        assert public(loaded.config) == public(model.config)
        assert torch.equal(predict(loaded, *inputs()), predict(model, *inputs()))


def test_the_export_with_code_loads_and_predicts_the_same(tmp_path):
    model = make()
    export_with_remote_code(model, tmp_path / "export")
    loaded = AutoModel.from_pretrained(str(tmp_path / "export"), trust_remote_code=True)
    assert type(loaded) is not TCDiTTransformer2DModel
    assert torch.equal(predict(loaded, *inputs()), predict(model, *inputs()))


def test_gradient_checkpointing_keeps_the_gradients():
    model = make().train()
    gradients = []
    for checkpointing in (False, True):
        (model.enable_gradient_checkpointing if checkpointing else model.disable_gradient_checkpointing)()
        model.zero_grad()
        model(*inputs()).sample.square().mean().backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    for first, second in zip(*gradients, strict=True):
        assert first.abs().max() > 0
        torch.testing.assert_close(first, second)


def test_compiles_to_one_graph_for_all_sizes_and_block_by_block():
    model = make()
    expected = [predict(model, *inputs(height=height, width=6)) for height in (4, 5, 6)]
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True, dynamic=True, backend="eager")
    for height, prediction in zip((4, 5, 6), expected, strict=True):
        torch.testing.assert_close(
            predict(compiled, *inputs(height=height, width=6)), prediction, atol=1e-5, rtol=1e-4
        )
    model.compile_repeated_blocks(fullgraph=True, backend="eager")
    torch.testing.assert_close(predict(model, *inputs(height=4, width=6)), expected[0], atol=1e-5, rtol=1e-4)


def test_attention_backends_and_fused_projections_change_nothing():
    model = make()
    expected = predict(model, *inputs())
    model.set_attention_backend("_native_math")
    torch.testing.assert_close(predict(model, *inputs()), expected, atol=1e-5, rtol=1e-4)
    model.reset_attention_backend()
    model.fuse_qkv_projections()
    assert model.transformer_blocks[0].attn.fused_projections
    torch.testing.assert_close(predict(model, *inputs()), expected, atol=1e-5, rtol=1e-4)
    model.unfuse_qkv_projections()
    assert not hasattr(model.transformer_blocks[0].attn, "to_qkv")
    torch.testing.assert_close(predict(model, *inputs()), expected, atol=1e-5, rtol=1e-4)


def test_half_precision_and_layerwise_casting_stay_close():
    expected = predict(make(), *inputs())
    latents, timestep, labels = inputs()
    half = predict(make().to(torch.bfloat16), latents.bfloat16(), timestep, labels)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), expected, atol=0.1, rtol=0.1)
    cast = make()
    cast.enable_layerwise_casting(storage_dtype=torch.bfloat16, compute_dtype=torch.float32)
    blocks = dict(cast.named_parameters())
    assert blocks["transformer_blocks.0.ff.proj_in.weight"].dtype == torch.bfloat16
    assert blocks["proj_out.weight"].dtype == blocks["transformer_blocks.0.norm1.weight"].dtype == torch.float32
    torch.testing.assert_close(predict(cast, *inputs()), expected, atol=0.1, rtol=0.1)


def test_lora_trains_saves_and_loads(tmp_path):
    peft = pytest.importorskip("peft")
    model = make()
    before = predict(model, *inputs())
    model.requires_grad_(False)
    config = peft.LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "to_k", "to_v", "to_out.0"])
    model.add_adapter(config, adapter_name="style")
    # A new adapter adds nothing, and it alone is trained.
    assert torch.equal(predict(model, *inputs()), before)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert len(trained) == 2 * 4 * 2 and all("lora" in name for name in trained)
    optimizer = torch.optim.SGD([parameter for parameter in model.parameters() if parameter.requires_grad], lr=10.0)
    for _ in range(2):
        model(*inputs()).sample.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    adapted = predict(model, *inputs())
    assert not torch.allclose(adapted, before, atol=1e-3)

    model.save_lora_adapter(str(tmp_path), adapter_name="style")
    other = make()
    other.load_lora_adapter(str(tmp_path), adapter_name="style", prefix=None, use_safetensors=True)
    torch.testing.assert_close(predict(other, *inputs()), adapted)
    other.set_adapters("style", weights=0.0)
    torch.testing.assert_close(predict(other, *inputs()), before)
    other.set_adapters("style", weights=1.0)
    other.fuse_lora()
    torch.testing.assert_close(predict(other, *inputs()), adapted, atol=1e-5, rtol=1e-4)
    model.disable_adapters()
    assert torch.equal(predict(model, *inputs()), before)
