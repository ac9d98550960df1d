"""Weights that lack something, or hold something else, are refused wherever models are loaded, and not only logged."""

import json
import shutil

import pytest
import torch
from diffusers import AutoModel
from safetensors.torch import load_file, save_file
from transformers import Dinov2Config, Dinov2Model, ViTConfig, ViTModel

from tcae_diffusers.errors import InputError
from tcae_diffusers.evaluation.pictures.drawing import load_pipeline
from tcae_diffusers.models.adapters import load_autoencoder
from tcae_diffusers.models.dino import DINO
from tcae_diffusers.models.whole_weights import load_whole_model
from tcae_diffusers.trainer.build_autoencoder import build_autoencoder

from ..latent_commands import calibrated, train

SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    return train(tmp_path_factory.mktemp("run") / "run", max_train_steps=1) / "pipeline"


def prefixed(weights):
    return {f"module.{name}": value for name, value in weights.items()}


def halved(weights):
    return dict(sorted(weights.items())[: len(weights) // 2])


def enlarged(weights):
    return {**weights, "a_third_block.weight": torch.zeros(2)}


CHANGES = {prefixed: "lack .*, and hold ", halved: "lack ", enlarged: "hold 1 others, such as a_third_block.weight"}


def change_weights(file, change):
    weights = change(load_file(file))
    save_file({name: value.contiguous() for name, value in weights.items()}, file, metadata={"format": "pt"})


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_what_is_no_whole_model_is_refused(pipeline, tmp_path, change):
    message = f"are not those of the .* that its config describes: they {CHANGES[change]}"
    tokenizer = shutil.copytree(calibrated()[0], tmp_path / "tokenizer")
    assert load_autoencoder(tokenizer) and build_autoencoder(str(tokenizer))
    change_weights(tokenizer / "diffusion_pytorch_model.safetensors", change)
    for load in (load_autoencoder, build_autoencoder):
        with pytest.raises(InputError, match=message):
            load(str(tokenizer))
    for part in ("transformer", "vae"):
        folder = shutil.copytree(pipeline, tmp_path / part)
        assert load_pipeline(folder) and load_whole_model(folder / part)
        change_weights(folder / part / "diffusion_pytorch_model.safetensors", change)
        for load, place in ((load_pipeline, folder), (load_whole_model, folder / part)):
            with pytest.raises(InputError, match=message):
                load(place)


def test_weights_of_other_shapes_are_named_in_a_few_words():
    with pytest.raises(InputError, match=r"not readable by AutoencoderTC.*may be why") as refused:
        build_autoencoder(str(calibrated()[0]), {"hidden_size": 64})
    # torch names each of the tensors.
    assert "size mismatch" in str(refused.value) and len(str(refused.value)) < 700


def test_an_override_does_not_leave_new_layers_undefined():
    with pytest.raises(InputError, match=r"they lack .*autoencoder_overrides .*encoder_num_layers.* may be why"):
        build_autoencoder(str(calibrated()[0]), {"encoder_num_layers": [2, 1]})


@pytest.mark.parametrize(("config", "model"), [(Dinov2Config, Dinov2Model), (ViTConfig, ViTModel)])
def test_networks_of_transformers_have_their_weights_but_for_the_pooler(tmp_path, config, model):
    torch.manual_seed(0)
    # As the published DINO was saved: without the pooler that transformers adds.
    options = {"add_pooling_layer": False} if model is ViTModel else {}
    model(config(**SMALL), **options).save_pretrained(tmp_path)
    DINO(tmp_path, resolution=28)
    change_weights(tmp_path / "model.safetensors", halved)
    with pytest.raises(InputError, match="they lack "):
        DINO(tmp_path, resolution=28)


def test_a_model_of_no_known_class_is_named(pipeline, tmp_path):
    folder = shutil.copytree(pipeline / "transformer", tmp_path / "transformer")
    config = folder / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "_class_name": "DitTransformer"}))
    with pytest.raises(InputError, match="holds a 'DitTransformer', which is no model of diffusers"):
        load_whole_model(folder)


def test_a_model_loads_after_the_library_has_loaded_one_of_a_pipeline(pipeline, monkeypatch):
    monkeypatch.setattr(AutoModel, "config_name", AutoModel.config_name)
    AutoModel.from_pretrained(str(pipeline), subfolder="transformer")
    assert AutoModel.config_name == "model_index.json"  # which a later `AutoModel.load_config` of a model lacks
    load_whole_model(pipeline / "transformer")
