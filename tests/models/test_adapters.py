"""Any autoencoder of diffusers answers through its adapter, and a new class needs one adapter and nothing else."""

import json

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny

from tcae_diffusers.errors import InputError
from tcae_diffusers.metrics.component_colours import feature_maps
from tcae_diffusers.metrics.encoded_images import hidden_states
from tcae_diffusers.models.adapters import ADAPTERS, AutoencoderAdapter, adapt

from ..latent_commands import FOREIGN
from ..tokenizer_commands import train

# Pixels per latent position, which is a patch in all of these, and what pipelines scale with.
EXPECTED = {
    "AutoencoderKL": (2, (0.3, 0.2)),
    "AutoencoderDC": (2, (0.4, 0.0)),
    "AutoencoderRAE": (4, (1.0, 0.0)),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_encode_decode_and_sizes(name):
    torch.manual_seed(0)
    model = FOREIGN[name]().eval()
    adapter, images = adapt(model), torch.rand(2, 3, 16, 16) * 2 - 1
    ratio, scaling = EXPECTED[name]
    with torch.no_grad():
        latent = adapter.encode(images)
        assert adapter.decode(latent).shape == images.shape
        encoded = adapter.training_encode(images)
        trained, kl = adapter.training_latent(encoded)
        assert torch.equal(trained, latent) and (kl is not None) == (name == "AutoencoderKL")
    assert (adapter.spatial_ratio, adapter.pipeline_scaling) == (ratio, pytest.approx(scaling))
    assert adapter.patch_size == ratio
    assert latent.shape[-1] == 16 // ratio and latent.shape[1] == adapter.latent_channels
    if name != "AutoencoderRAE":
        with pytest.raises(InputError, match="width 17 is not a multiple of 2"):
            adapter.check_image_size(16, 17)


def test_the_patches_of_a_decoder_may_be_smaller_than_a_latent_position(tiny_tcae):
    adapter = adapt(tiny_tcae)
    assert adapter.patch_size == tiny_tcae.decoder.patch_size < adapter.spatial_ratio


def test_the_ratio_is_what_the_model_does_where_no_config_names_it():
    channels = {"encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8)}
    blocks = {"num_encoder_blocks": (1, 1), "num_decoder_blocks": (1, 1)}
    model = AutoencoderTiny(**channels, **blocks, latent_channels=4, act_fn="relu")
    size = 8 * adapt(model).spatial_ratio
    assert size == 16
    with torch.no_grad():
        assert adapt(model).encode(torch.zeros(1, 3, size, size)).shape[-1] == 8


@pytest.mark.parametrize("name", ["AutoencoderKL", "AutoencoderTC"])
def test_the_token_encoder_is_the_way_that_encode_takes(name, tiny_tcae):
    torch.manual_seed(0)
    model = tiny_tcae if name == "AutoencoderTC" else FOREIGN[name]().eval()
    adapter, images = adapt(model), torch.rand(2, 3, 32, 32) * 2 - 1
    adapter.reset_statistics()
    with torch.no_grad():
        features = adapter.token_encoder()(images)
        latent, _ = adapter.training_latent(features.latent)
        torch.testing.assert_close(latent, adapter.encode(images))
        torch.testing.assert_close(adapter.training_decode(latent), adapter.decode(latent))
    rows, columns = features.last_grid
    assert features.last.shape == (2, rows * columns, adapter.token_width)
    assert rows * adapter.token_pixels("last") == 32


def test_the_kl_encoder_owns_the_parameters_of_the_model_and_no_others():
    model = FOREIGN["AutoencoderKL"]()
    own = {id(parameter) for parameter in adapt(model).token_encoder().parameters()}
    adapter = adapt(model)
    assert own == {id(p) for name, p in model.named_parameters() if not adapter.is_decoder(name)}


def test_a_class_without_tokens_says_which_have_them():
    adapter = adapt(FOREIGN["AutoencoderDC"]())
    assert adapter.token_places == ()
    for ask in (adapter.token_encoder, adapter.token_pixels, lambda: adapter.token_width):
        with pytest.raises(InputError, match=r"AutoencoderDC does not expose .* AutoencoderKL, AutoencoderTC do"):
            ask()


def test_a_subclass_has_the_adapter_of_its_base_and_a_new_class_enters_itself(monkeypatch):
    class Mine(AutoencoderKL):
        pass

    monkeypatch.setattr("tcae_diffusers.models.adapters.adapter.ADAPTERS", dict(ADAPTERS))
    assert type(adapt(Mine(norm_num_groups=4, block_out_channels=(8,)))) is ADAPTERS["AutoencoderKL"]

    class MineAdapter(AutoencoderAdapter):
        model_classes = ("Mine",)
        spatial_ratio = 7

    assert adapt(Mine(norm_num_groups=4, block_out_channels=(8,))).spatial_ratio == 7


def test_what_pipelines_scale_by_is_set_only_where_the_model_does_not_scale_itself(tiny_tcae):
    class ConsistencyDecoderVAE(AutoencoderKL):
        """By its name, of which diffusers has a model too large to build here."""

    built = {"AutoencoderTC": tiny_tcae} | {name: make() for name, make in FOREIGN.items()}
    built["ConsistencyDecoderVAE"] = ConsistencyDecoderVAE(norm_num_groups=4, block_out_channels=(8,))
    assert {name: adapt(model).scaling_entries for name, model in built.items()} == {
        "AutoencoderTC": (),
        "AutoencoderKL": ("scaling_factor", "shift_factor"),
        "AutoencoderDC": ("scaling_factor",),
        "AutoencoderRAE": (),
        "ConsistencyDecoderVAE": (),
    }


def test_an_adapter_with_tokens_is_all_that_probes_and_pictures_and_dino_need(tmp_path):
    config = {"_class_name": "AutoencoderKL", **dict(FOREIGN["AutoencoderKL"]().config)}
    (tmp_path / "kl.json").write_text(
        json.dumps({k: v for k, v in config.items() if k == "_class_name" or k[0] != "_"})
    )
    options = {"autoencoder": tmp_path / "kl.json", "autoencoder_overrides": "{}", "ssl_drop_path": 0}
    folder = train(tmp_path / "run", **options, ssl="dino", resolution=16, max_train_steps=2)
    model = AutoencoderKL.from_pretrained(folder / "model").eval()
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    assert list(hidden_states(model, images)) == ["tokens", "class token", "latent"]
    assert list(feature_maps(model, images)) == ["last tokens", "latent"]
