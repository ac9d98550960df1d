"""
Context and tensor parallelism through diffusers: two gloo ranks predict what one process does.

diffusers offers both on accelerators only. What they do to the tensors is the same on a CPU, once diffusers is told
that a CPU is one device and that its mesh may divide weights.
"""

import pytest
import torch
from accelerate import init_empty_weights
from diffusers import ContextParallelConfig, TensorParallelConfig
from diffusers.hooks import tensor_parallel
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from tcae_diffusers import AUTOENCODER_TC_PRESETS, TC_DIT_PRESETS, AutoencoderTC, TCDiTTransformer2DModel

from ..latent_commands import fork_ranks
from .test_transformer_tc_dit import inputs, make, predict

# Two thirds of 3 times the width, unlike of 4 times, are an even number.
EVEN = {"mlp_ratio": 3.0}


def gather_unequal(outputs: list[torch.Tensor], tensor: torch.Tensor, group: torch.distributed.ProcessGroup) -> None:
    """`all_gather` of tensors of unequal sizes, which gloo refuses, by broadcasts, as NCCL does it."""
    for rank, output in enumerate(outputs):
        if rank == torch.distributed.get_rank(group):
            output.copy_(tensor)
        torch.distributed.broadcast(output, rank, group)


def context_parallel(**options) -> ContextParallelConfig:
    torch.distributed.init_process_group("cpu:gloo")
    torch.accelerator.device_count = lambda: 1
    torch.distributed.all_gather = gather_unequal
    mesh = init_device_mesh("cpu", (1, 2), mesh_dim_names=("ring", "ulysses"))
    return ContextParallelConfig(ulysses_degree=2, mesh=mesh, **options)


def tensor_parallel_config() -> TensorParallelConfig:
    torch.distributed.init_process_group("cpu:gloo")
    torch.accelerator.device_count = lambda: 1
    tensor_parallel._SUPPORTED_TP_DEVICES = ("cpu",)
    return TensorParallelConfig(mesh=init_device_mesh("cpu", (2,), mesh_dim_names=("tp",)))


def lengths_seen_by(module: torch.nn.Module) -> list[int]:
    lengths: list[int] = []
    module.register_forward_pre_hook(lambda module, arguments: lengths.append(arguments[0].shape[1]))
    return lengths


def on_two_ranks(function) -> None:
    assert fork_ranks(function) == [0, 0]


# Context parallelism -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(4, 4), (4, 6)])
def test_two_ranks_share_the_tokens_of_the_transformer(size):
    model, arguments = make(patch_size=2), inputs(height=size[0], width=size[1])
    expected = predict(model, *arguments)

    def rank_run(rank):
        model.enable_parallelism(config=context_parallel())
        lengths = [lengths_seen_by(block.attn.to_q) for block in model.transformer_blocks]
        torch.testing.assert_close(predict(model, *arguments), expected)
        assert lengths == [[size[0] * size[1] // 4 // 2]] * 2

    on_two_ranks(rank_run)


@pytest.mark.parametrize(
    "config",
    [{}, {"staged_compression": False}, {"encoder_num_layers": (0, 2), "staged_compression": False}],
    ids=["staged", "one bottleneck", "no first blocks"],
)
def test_two_ranks_share_the_tokens_of_the_autoencoder(make_tiny_tcae, config):
    model, images = make_tiny_tcae(**config), torch.randn(2, 3, 32, 48, generator=torch.manual_seed(0))
    with torch.no_grad():
        features, latent = model.forward_features(images), model.encode(images).latent
        decoded = model.decode(latent).sample

    @torch.no_grad()
    def rank_run(rank):
        model.enable_parallelism(config=context_parallel(ulysses_anything=True))
        lengths = [
            lengths_seen_by([*part.first_blocks, *part.last_blocks][-1].attn.to_q)
            for part in (model.encoder, model.decoder)
        ]
        torch.testing.assert_close(model.encode(images).latent, latent)
        torch.testing.assert_close(model.decode(latent).sample, decoded)
        grid = (8 * 12 if model.config.staged_compression else 16 * 24), 16 * 24
        # The class token goes to the first rank.
        assert lengths == [[grid[0] // 2 + 1 - rank], [grid[1] // 2]]
        for name, value in model.forward_features(images).items():
            torch.testing.assert_close(value, features[name])

    on_two_ranks(rank_run)


def test_decoding_alone_needs_no_uneven_shares_and_encoding_says_that_it_does(tiny_tcae):
    latent = torch.randn(1, 8, 4, 4, generator=torch.manual_seed(0))
    with torch.no_grad():
        decoded = tiny_tcae.decode(latent).sample

    @torch.no_grad()
    def rank_run(rank):
        tiny_tcae.enable_parallelism(config=context_parallel())
        torch.testing.assert_close(tiny_tcae.decode(latent).sample, decoded)
        with pytest.raises(AssertionError, match="must be divisible by mesh size"):
            tiny_tcae.encode(torch.zeros(1, 3, 32, 32))

    on_two_ranks(rank_run)


# Tensor parallelism --------------------------------------------------------------------------------------------------


def is_halved(layer: torch.nn.Linear, dim: int) -> bool:
    weight = layer.weight
    return isinstance(weight, DTensor) and 2 * weight.to_local().shape[dim] == weight.shape[dim]


def test_two_ranks_share_the_weights_of_the_transformer():
    model, arguments = make(**EVEN), inputs()
    expected = predict(model, *arguments)

    def rank_run(rank):
        model.enable_parallelism(config=tensor_parallel_config())
        torch.testing.assert_close(predict(model, *arguments), expected)
        for block in model.transformer_blocks:
            assert is_halved(block.attn.to_q, 0) and is_halved(block.attn.to_out[0], 1)
            assert is_halved(block.ff.proj_in, 0) and is_halved(block.ff.proj_out, 1)

    on_two_ranks(rank_run)


@pytest.mark.parametrize("activation_fn", ["swiglu", "gelu"])
def test_two_ranks_read_and_share_the_weights_of_the_autoencoder(make_tiny_tcae, tmp_path, activation_fn):
    model, images = make_tiny_tcae(**EVEN, activation_fn=activation_fn), torch.randn(2, 3, 32, 32)
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        latent = model.encode(images).latent
        decoded = model.decode(latent).sample

    @torch.no_grad()
    def rank_run(rank):
        shared = AutoencoderTC.from_pretrained(tmp_path, parallel_config=tensor_parallel_config())
        torch.testing.assert_close(shared.encode(images).latent, latent)
        torch.testing.assert_close(shared.decode(latent).sample, decoded)
        for part in (shared.encoder, shared.decoder):
            for block in (*part.first_blocks, *part.last_blocks):
                assert is_halved(block.attn.to_v, 0) and is_halved(block.attn.to_out, 1)
                assert is_halved(block.ff.proj_in, 0) and is_halved(block.ff.proj_out, 1)

    on_two_ranks(rank_run)


@pytest.mark.parametrize("name", [*AUTOENCODER_TC_PRESETS, *TC_DIT_PRESETS])
def test_the_weights_of_every_preset_can_be_shared_by_two(name):
    with init_empty_weights():
        is_transformer = name in TC_DIT_PRESETS
        model = (TCDiTTransformer2DModel if is_transformer else AutoencoderTC).from_preset(name)
    specs = tensor_parallel.resolve_tp_shard_specs(model, model._tp_plan, 2)
    matrices = {
        name
        for name, parameter in model.named_parameters()
        if parameter.ndim == 2 and (".attn." in name or ".ff." in name)
    }
    assert matrices and matrices == {name for name, spec in specs.items() if spec.dim is not None and "weight" in name}
