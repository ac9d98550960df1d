"""Configuration, presets, saving and loading of AutoencoderTC."""

import json
import logging

import pytest
import torch
from diffusers import AutoModel
from diffusers.utils import logging as diffusers_logging

from tcae_diffusers import AUTOENCODER_TC_PRESETS, AutoencoderTC


@pytest.fixture
def diffusers_log(caplog):
    """diffusers' messages, which its own handler otherwise keeps from propagating."""
    diffusers_logging.enable_propagation()
    with caplog.at_level(logging.WARNING, logger="diffusers"):
        yield caplog
    diffusers_logging.disable_propagation()


# Configuration -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"spatial_compression_ratio": 12}, "spatial_compression_ratio 12 .* power of two"),
        ({"spatial_compression_ratio": 2}, "spatial_compression_ratio 2 .* multiple of 4.*staged_compression"),
        ({"patch_size": 3}, "multiple of 6"),
        ({"patch_size": 16, "staged_compression": False}, "spatial_compression_ratio 8 .* multiple of 16"),
        ({"patch_size": 0}, "patch_size 0 must be at least 1"),
        ({"latent_channels": 0}, "latent_channels 0"),
        ({"num_attention_heads": 0}, "num_attention_heads 0"),
        ({"num_attention_heads": 3}, "hidden_size 32 divided by num_attention_heads 3"),
        ({"num_attention_heads": 16}, "hidden_size 32 divided by num_attention_heads 16"),
        ({"decoder_hidden_size": 0}, "decoder_hidden_size 0 must be at least 1"),
        ({"decoder_hidden_size": 20}, "decoder_hidden_size 20 divided by decoder_num_attention_heads 2"),
        ({"decoder_num_attention_heads": 0}, "decoder_num_attention_heads 0 must be at least 1"),
        ({"encoder_num_layers": (4,)}, r"encoder_num_layers \(4,\)"),
        ({"decoder_num_layers": (1, -1)}, r"decoder_num_layers \(1, -1\)"),
        ({"activation_fn": "relu"}, "activation_fn 'relu'"),
        ({"scaling_factor": 0.18215}, r"set_latent_statistics\(\)"),
        ({"shift_factor": 0.1}, "must keep their defaults"),
        ({"latents_mean": [0.0] * 8}, "must keep their defaults"),
        ({"block_out_channels": (32, 32)}, "block_out_channels has 2 entries, expected 4"),
        ({"encoder_block_out_channels": (32,) * 5}, "encoder_block_out_channels has 5 entries, expected 4"),
    ],
)
def test_a_config_that_cannot_work_is_refused_by_name(tiny_config, overrides, message):
    with pytest.raises(ValueError, match=message):
        AutoencoderTC(**{**tiny_config, **overrides})


def test_the_config_answers_every_caller(make_tiny_tcae):
    config = make_tiny_tcae().config
    assert config.block_out_channels == config.encoder_block_out_channels == (32,) * 4
    assert 2 ** (len(config.block_out_channels) - 1) == config.spatial_compression_ratio == 8
    assert (config.scaling_factor, config.shift_factor, config.force_upcast) == (1.0, 0.0, False)
    assert config.latents_mean is None and config.latents_std is None
    assert (config.sample_size, config.latent_channels, config.in_channels) == (32, 8, 3)
    assert make_tiny_tcae().spatial_compression_ratio == 8
    assert make_tiny_tcae().temporal_compression_ratio == 1


@pytest.mark.parametrize("preset", AUTOENCODER_TC_PRESETS)
def test_every_preset_survives_its_own_config(preset, tmp_path):
    with torch.device("meta"):
        model = AutoencoderTC.from_preset(preset)
        assert AutoencoderTC.from_config(model.config).config == model.config
        model.save_config(tmp_path)
        loaded = AutoencoderTC.from_config(AutoencoderTC.load_config(tmp_path))
    for key in json.loads((tmp_path / "config.json").read_text()):
        assert loaded.config[key] == model.config[key] or list(loaded.config[key]) == list(model.config[key]), key
    assert loaded.state_dict().keys() == model.state_dict().keys()


def test_derived_entries_follow_a_changed_ratio_unless_they_were_saved(tiny_config, tmp_path):
    with torch.device("meta"):
        model = AutoencoderTC(**tiny_config)
        changed = AutoencoderTC.from_config(model.config, spatial_compression_ratio=16)
        assert len(changed.config.block_out_channels) == 5
        model.save_config(tmp_path)
        with pytest.raises(ValueError, match=r"block_out_channels has 4 entries, expected 5.*Omit it"):
            AutoencoderTC.from_config(AutoencoderTC.load_config(tmp_path), spatial_compression_ratio=16)


def test_a_decoder_mirrors_the_encoder_unless_its_shape_is_given(tiny_config):
    mirrored = AutoencoderTC(**tiny_config)
    light = AutoencoderTC(**tiny_config, decoder_hidden_size=16, decoder_num_layers=(1, 0))
    shape = ("decoder_hidden_size", "decoder_num_attention_heads", "decoder_num_layers")
    assert [mirrored.config[name] for name in shape] == [32, 2, (1, 2)]
    assert [light.config[name] for name in shape] == [16, 2, (1, 0)]
    widths = {norm.weight.shape[0] for name, norm in light.decoder.named_modules() if name.endswith("last_norm")}
    assert widths == {16} and len(light.decoder.last_blocks) == 0
    encoders = [{k: v.shape for k, v in model.encoder.state_dict().items()} for model in (mirrored, light)]
    assert encoders[0] == encoders[1]
    images = torch.randn(1, 3, 32, 40)
    with torch.no_grad():
        assert light.encode(images).latent.shape == mirrored.encode(images).latent.shape
        assert light(images).sample.shape == images.shape


def test_the_papers_preset_has_the_parameters_that_its_sizes_imply():
    with torch.device("meta"):
        model = AutoencoderTC.from_preset("tc-ae-f32c128")
    width, inner = 768, 2048
    block = 4 * (width + 1) * width + 2 * 64 + (width + 1) * 2 * inner + (inner + 1) * width + 4 * width
    convolutions = 2 * (9 * width * width + width)
    hidden = 4 * width
    encoder = (
        (3 * 64 + 1) * width  # patch embedding
        + width  # class token
        + 12 * block
        + convolutions
        + 2 * 2 * width  # the two stage norms
        + (4 * width + 1) * hidden
        + (hidden + 1) * 128
    )
    decoder = (
        (128 + 1) * hidden
        + (hidden + 1) * 4 * width
        + 12 * block
        + convolutions
        + 2 * 2 * width
        + (width + 1) * 3 * 64
    )
    assert sum(p.numel() for p in model.encoder.parameters()) == encoder
    assert sum(p.numel() for p in model.decoder.parameters()) == decoder
    assert round((encoder + decoder) / 1e6) == 211


# Wrong names ---------------------------------------------------------------------------------------------------------


def test_an_unknown_preset_or_override_is_an_error_that_lists_what_exists():
    with pytest.raises(ValueError, match=r"Unknown preset 'tc-ae'.*tc-ae-f32c128"):
        AutoencoderTC.from_preset("tc-ae")
    with pytest.raises(TypeError, match="no config argument 'hidden_sise'; did you mean 'hidden_size'"):
        AutoencoderTC.from_preset("tc-ae-xs-f8c32", hidden_sise=64)
    with pytest.raises(TypeError, match="hidden_sise"):
        AutoencoderTC(hidden_sise=64)


def test_an_unknown_key_in_a_config_file_is_named_in_diffusers_warning(tiny_tcae, tmp_path, diffusers_log):
    tiny_tcae.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "hidden_sise": 64}))
    AutoencoderTC.from_pretrained(tmp_path)
    assert "'hidden_sise': 64" in diffusers_log.text and "not expected" in diffusers_log.text


# Saving and loading --------------------------------------------------------------------------------------------------


def assert_same_model(actual: AutoencoderTC, expected: AutoencoderTC) -> None:
    state, expected_state = actual.state_dict(), expected.state_dict()
    assert state.keys() == expected_state.keys()
    for name, value in expected_state.items():
        assert state[name].dtype == value.dtype and torch.equal(state[name], value), name
    for name, value in expected.config.items():
        if not name.startswith("_"):
            assert actual.config[name] == value or list(actual.config[name]) == list(value), name
    images = torch.randn(1, 3, 32, 32, dtype=expected.dtype)
    with torch.no_grad():
        assert torch.equal(actual(images).sample, expected(images).sample)


@pytest.mark.parametrize(
    ("save_arguments", "load_arguments", "files"),
    [
        ({}, {}, "diffusion_pytorch_model.safetensors"),
        ({"max_shard_size": "40KB"}, {}, "diffusion_pytorch_model-00002-of-*.safetensors"),
        ({"variant": "ema"}, {"variant": "ema"}, "diffusion_pytorch_model.ema.safetensors"),
        (
            {"variant": "fp16", "max_shard_size": "40KB"},
            {"variant": "fp16"},
            "diffusion_pytorch_model.fp16-00002-of-*.safetensors",
        ),
        ({}, {"low_cpu_mem_usage": False}, "diffusion_pytorch_model.safetensors"),
        ({}, {"device_map": "auto"}, "diffusion_pytorch_model.safetensors"),
        ({"max_shard_size": "40KB"}, {"device_map": "auto"}, "diffusion_pytorch_model.safetensors.index.json"),
        ({}, {"device_map": {"": "cpu"}}, "diffusion_pytorch_model.safetensors"),
        ({"safe_serialization": False}, {"use_safetensors": False}, "diffusion_pytorch_model.bin"),
    ],
)
def test_saving_and_loading_keeps_every_bit(make_tiny_tcae, tmp_path, save_arguments, load_arguments, files):
    tiny_tcae = make_tiny_tcae(decoder_hidden_size=16, decoder_num_attention_heads=1)
    tiny_tcae.save_pretrained(tmp_path, **save_arguments)
    assert list(tmp_path.glob(files)), sorted(tmp_path.iterdir())
    assert_same_model(AutoencoderTC.from_pretrained(tmp_path, **load_arguments), tiny_tcae)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights_survive_saving(tiny_tcae, tmp_path, dtype):
    tiny_tcae.to(dtype).save_pretrained(tmp_path)
    assert_same_model(AutoencoderTC.from_pretrained(tmp_path, dtype=dtype), tiny_tcae)


def test_auto_model_finds_the_class(tiny_tcae, tmp_path):
    tiny_tcae.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(str(tmp_path))
    assert isinstance(loaded, AutoencoderTC)
    assert_same_model(loaded, tiny_tcae)


def test_a_checkpoint_of_another_shape_is_refused(tiny_tcae, tmp_path):
    tiny_tcae.save_pretrained(tmp_path)
    with pytest.raises((ValueError, RuntimeError), match=r"latent_mean|to_latent|size mismatch|shape"):
        AutoencoderTC.from_pretrained(tmp_path, latent_channels=16, low_cpu_mem_usage=False)
