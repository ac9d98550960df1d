"""The features that users of diffusers know from other autoencoders, each on AutoencoderTC."""

import copy

import pytest
import torch
from accelerate import cpu_offload
from accelerate.hooks import ModelHook, add_hook_to_module
from torch._subclasses.fake_tensor import FakeTensorMode

from tcae_diffusers import AutoencoderTC
from tcae_diffusers.models.axial_attention import AxialAttnProcessor

# Gradient checkpointing ----------------------------------------------------------------------------------------------


def test_gradient_checkpointing_halves_the_activations_of_the_papers_model(live_tensors):
    """256 px, batch 8; with tensors that have sizes and lifetimes but no memory."""
    kept = {}
    with FakeTensorMode():
        model = AutoencoderTC.from_preset("tc-ae-f32c128").train()
        images = torch.empty(8, 3, 256, 256)
        for checkpointing in (False, True):
            (model.enable_gradient_checkpointing if checkpointing else model.disable_gradient_checkpointing)()
            with live_tensors(ignore=model.state_dict().values()) as tensors:
                loss = model(images).sample.mean()
            kept[checkpointing] = tensors.alive()
            loss.backward()
            del loss
    assert kept[False] > 5e9
    assert kept[True] < 0.1 * kept[False], kept


def test_gradient_checkpointing_keeps_the_gradients(tiny_tcae):
    images = torch.randn(2, 3, 32, 32)
    gradients = []
    for checkpointing in (False, True):
        model = copy.deepcopy(tiny_tcae).train()
        calls = []
        if checkpointing:
            model.enable_gradient_checkpointing()
        for block in (*model.encoder.first_blocks, *model.decoder.last_blocks):
            block.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        assert model.is_gradient_checkpointing is checkpointing
        model(images).sample.square().mean().backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
        assert len(calls) == (8 if checkpointing else 4)
    # The first stage's class token has no other use than to be attended to, so every parameter has a gradient.
    for name, gradient in gradients[0].items():
        assert torch.allclose(gradient, gradients[1][name], atol=1e-6), name


# Attention -----------------------------------------------------------------------------------------------------------


def test_fused_projections_give_the_same_and_can_be_undone(tiny_tcae):
    images = torch.randn(1, 3, 32, 32)
    names = tiny_tcae.state_dict().keys()
    with torch.no_grad():
        expected = tiny_tcae(images).sample
        tiny_tcae.fuse_qkv_projections()
        attention = tiny_tcae.encoder.first_blocks[0].attn
        assert type(attention.to_qkv) is type(attention.to_q) and attention.to_qkv.weight.shape == (96, 32)
        attention.to_q.weight.zero_()  # the fused projection is what runs
        assert torch.allclose(tiny_tcae(images).sample, expected, atol=1e-5)
        attention.to_q.weight.copy_(attention.to_qkv.weight[:32])
        tiny_tcae.unfuse_qkv_projections()
        assert torch.equal(tiny_tcae(images).sample, expected)
    assert tiny_tcae.state_dict().keys() == names


def test_attention_processors_can_be_listed_and_replaced(tiny_tcae):
    calls = []

    class CountingProcessor(AxialAttnProcessor):
        def __call__(self, attn, hidden_states, rotary_embedding):
            calls.append(hidden_states.shape[1])
            return super().__call__(attn, hidden_states, rotary_embedding)

    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        expected = tiny_tcae(images).sample
        assert len(tiny_tcae.attn_processors) == 6
        tiny_tcae.set_attn_processor(CountingProcessor())
        assert torch.equal(tiny_tcae(images).sample, expected)
    assert calls == [257, 257, 65, 64, 256, 256]
    with pytest.raises(ValueError, match="number of attention layers: 6"):
        tiny_tcae.set_attn_processor({"encoder.first_blocks.0.attn.processor": CountingProcessor()})


@pytest.mark.parametrize("backend", ["native", "_native_math"])
def test_attention_backends_agree(tiny_tcae, backend):
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        expected = tiny_tcae(images).sample
        tiny_tcae.set_attention_backend(backend)
        assert {p._attention_backend.value for p in tiny_tcae.attn_processors.values()} == {backend}
        assert torch.allclose(tiny_tcae(images).sample, expected, atol=1e-5)
        tiny_tcae.reset_attention_backend()
    assert {p._attention_backend for p in tiny_tcae.attn_processors.values()} == {None}


# Precision -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 0.005), (torch.bfloat16, 0.04)])
@pytest.mark.parametrize("name", ["tiny_tcae", "tcae_of_photographs"])
def test_half_precision_stays_close_and_far_from_overflow(request, photograph, name, dtype, tolerance):
    """The tolerance is the root mean square difference from fp32, relative to the fp32 result."""
    model, images = request.getfixturevalue(name), photograph("rocket.jpg", 64)
    largest = []

    def remember(module, args, output):
        if isinstance(output, torch.Tensor):
            largest.append(float(output.abs().max()))

    half = copy.deepcopy(model).to(dtype)
    for module in half.modules():
        module.register_forward_hook(remember)
    with torch.no_grad():
        latent = model.encode(images).latent
        half_latent = half.encode(images.to(dtype)).latent
        sample, half_sample = model.decode(latent).sample, half.decode(half_latent).sample
    for expected, actual in ((latent, half_latent), (sample, half_sample)):
        assert actual.dtype == dtype
        assert (actual.float() - expected).norm() < tolerance * expected.norm()
    assert 1.0 < max(largest) < torch.finfo(torch.float16).max / 100


def test_qk_norm_bounds_the_attention_logits(tiny_tcae):
    """Weights that would overflow fp16 in plain dot-product attention do no harm."""
    attention = tiny_tcae.encoder.first_blocks[0].attn
    with torch.no_grad():
        attention.to_q.weight.mul_(1000)
        attention.to_k.weight.mul_(1000)
        sample = tiny_tcae.to(torch.float16)(torch.randn(1, 3, 32, 32).half()).sample
    assert torch.isfinite(sample).all()


@pytest.mark.filterwarnings("error")
def test_autocast_trains_without_a_warning_and_stays_close(tiny_tcae):
    images = torch.randn(1, 3, 32, 32)
    expected = tiny_tcae(images).sample
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = tiny_tcae(images).sample
    assert 0 < (actual.float() - expected).norm() < 0.04 * expected.norm()
    actual.float().square().mean().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in tiny_tcae.parameters())


def test_layerwise_casting_stores_less_and_stays_close(tiny_tcae):
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        expected = tiny_tcae(images).sample
        tiny_tcae.enable_layerwise_casting(storage_dtype=torch.bfloat16, compute_dtype=torch.float32)
        for _ in range(2):
            actual = tiny_tcae(images).sample
            assert (actual - expected).norm() < 0.02 * expected.norm()
    stored = {name: parameter.dtype for name, parameter in tiny_tcae.named_parameters()}
    assert stored["encoder.first_blocks.0.attn.to_q.weight"] == torch.bfloat16
    assert stored["decoder.last_blocks.0.ff.proj_in.weight"] == torch.bfloat16
    assert stored["encoder.token_reduction.conv_in.weight"] == torch.bfloat16
    # What the sums of all tokens pass through keeps its precision.
    assert stored["encoder.patch_embed.weight"] == stored["encoder.first_norm.weight"] == torch.float32
    assert stored["encoder.first_blocks.0.attn.norm_q.weight"] == torch.float32
    assert tiny_tcae.latent_mean.dtype == torch.float32


# Offloading ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        {"offload_type": "block_level", "num_blocks_per_group": 1},
        {"offload_type": "block_level", "num_blocks_per_group": 2},
        {"offload_type": "leaf_level"},
    ],
)
def test_group_offloading_works_through_encode_and_decode(tiny_tcae, tmp_path, arguments):
    """Weights live on disk between uses, so a group that no hook brings back would be missing."""
    images = torch.randn(1, 3, 32, 48)
    with torch.no_grad():
        latent = tiny_tcae.encode(images).latent
        sample = tiny_tcae.decode(latent).sample
        tiny_tcae.enable_group_offload(
            onload_device=torch.device("cpu"),
            offload_device=torch.device("cpu"),
            offload_to_disk_path=str(tmp_path),
            **arguments,
        )
        assert list(tmp_path.glob("*.safetensors"))
        for _ in range(2):
            assert torch.allclose(tiny_tcae.encode(images).latent, latent, atol=1e-6)
            assert torch.allclose(tiny_tcae.decode(latent).sample, sample, atol=1e-6)


def test_model_offloading_is_triggered_by_encode_and_decode(tiny_tcae):
    class CountingHook(ModelHook):
        calls = 0

        def pre_forward(self, module, *args, **kwargs):
            self.calls += 1
            return args, kwargs

    hook = CountingHook()
    add_hook_to_module(tiny_tcae, hook)
    with torch.no_grad():
        latent = tiny_tcae.encode(torch.randn(1, 3, 32, 32)).latent
        assert hook.calls == 1
        tiny_tcae.decode(latent)
        assert hook.calls == 2


def test_sequential_offloading_keeps_weights_away_between_calls(tiny_tcae):
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        expected = tiny_tcae(images).sample
        cpu_offload(tiny_tcae, execution_device=torch.device("cpu"), offload_buffers=True)
        assert all(parameter.is_meta for parameter in tiny_tcae.parameters())
        assert torch.allclose(tiny_tcae(images).sample, expected, atol=1e-6)


def test_a_device_map_never_splits_a_block(tiny_tcae, tmp_path):
    tiny_tcae.save_pretrained(tmp_path)
    loaded = AutoencoderTC.from_pretrained(
        tmp_path, device_map="auto", max_memory={"cpu": "120KB"}, offload_folder=str(tmp_path / "offload")
    )
    assert "disk" in loaded.hf_device_map.values()
    assert not [name for name in loaded.hf_device_map if "_blocks." in name and name.count(".") > 2]
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(loaded(images).sample, tiny_tcae(images).sample, atol=1e-5)
