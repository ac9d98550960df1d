"""The presets that ship: each is read by its script and fits the model it names."""

import re
from importlib import resources

import pytest
import torch
import yaml

from tcae_diffusers.arguments import parse_arguments
from tcae_diffusers.metrics.model_cost import autoencoder_cost
from tcae_diffusers.models.adapters import adapt
from tcae_diffusers.models.frozen_network import without_pretrained_weights
from tcae_diffusers.models.named_models import build_named_autoencoder
from tcae_diffusers.self_supervision import build_method
from tcae_diffusers.trainer.build_autoencoder import build_autoencoder, resolve_sizes
from tcae_diffusers.trainer.latent_shaping import build_latent_shaping
from tcae_diffusers.training.cache_arguments import CacheArguments
from tcae_diffusers.training.count_steps import counting_accelerator
from tcae_diffusers.training.dit_arguments import DiTArguments
from tcae_diffusers.training.finetune_decoder import DecoderArguments
from tcae_diffusers.training.train_tcae import TokenizerArguments, freeze_layers

FOLDER = resources.files("tcae_diffusers.training.configs")
DECODERS = ["openmoji32_decoder", "tc_ae_f32c128_imagenet256_decoder", "tc_ae_f32c128_imagenet256_decoder_noise"]
LIGHT_DECODERS = ["openmoji32_light_decoder", "tc_ae_f32c128_imagenet256_light_decoder"]
ADAPTED = {"openmoji32_to64": 64, "tc_ae_f32c128_to512": 512, "tc_ae_f32c128_to1024": 1024}
HEADS = {"openmoji32_to64_decoder_head": 32, "tc_ae_f32c128_decoder_head": 256}
TOKENIZERS = [
    "openmoji32",
    "openmoji32_adamw",
    "openmoji32_coarse",
    "openmoji32_nossl",
    "openmoji32_nostc",
    "openmoji32_nostc_nossl",
    "openmoji64",
    "tc_ae_f32c128_imagenet256",
    "tc_ae_f32c128_imagenet256_nossl",
    "tc_ae_f32c128_imagenet256_nostc",
    "tc_ae_f32c128_imagenet256_nostc_nossl",
    "tc_ae_f32c128_p16_imagenet256",
    "tc_ae_f32c256_imagenet256",
    "tc_ae_f32c128_imagenet256_muon",
    "tc_ae_f32c128_imagenet256_muon_denoising",
    "tc_ae_f32c128_imagenet256_muon_nossl_aligned",
]
# Those that take up what came after the paper, and the presets that they change.
LATER = {
    "tc_ae_f32c128_imagenet256_muon": "tc_ae_f32c128_imagenet256",
    "tc_ae_f32c128_imagenet256_muon_denoising": "tc_ae_f32c128_imagenet256_muon",
    "tc_ae_f32c128_imagenet256_muon_nossl_aligned": "tc_ae_f32c128_imagenet256_muon",
    "tc_ae_f32c128_imagenet256_decoder_noise": "tc_ae_f32c128_imagenet256_decoder",
    "imagenet256_tc_dit_xl_irepa": "imagenet256_tc_dit_xl",
}


def test_every_preset_of_a_tokenizer_is_listed_here_and_says_what_to_expect():
    names = {entry.name[:-5] for entry in FOLDER.iterdir() if entry.name.endswith(".yaml")}
    assert {name for name in names if "dit" not in name} == {*TOKENIZERS, *DECODERS, *LIGHT_DECODERS, *ADAPTED, *HEADS}
    for name in (*TOKENIZERS, *DECODERS, *LIGHT_DECODERS, *ADAPTED, *HEADS):
        text = (FOLDER / f"{name}.yaml").read_text()
        assert text.startswith("#"), name
        assert "Expected" in text or name == "openmoji32", name


@pytest.mark.parametrize(
    ("command", "own", "others"),
    [
        (TokenizerArguments, {*TOKENIZERS, *ADAPTED}, {*LIGHT_DECODERS, *HEADS, "openmoji32_dit"}),
        (DecoderArguments, {*DECODERS, *LIGHT_DECODERS, *HEADS}, {*TOKENIZERS, *ADAPTED, "openmoji32_dit"}),
        (DiTArguments, {"openmoji32_dit", "imagenet256_tc_dit_xl"}, {*TOKENIZERS, *DECODERS, *HEADS}),
        (CacheArguments, set(), {*TOKENIZERS, *DECODERS, "openmoji32_dit"}),
    ],
)
def test_help_names_the_presets_of_a_command(command, own, others, capsys):
    with pytest.raises(SystemExit):
        parse_arguments(command, ["--help"])
    (text,) = re.findall(r"--config FILE (.*?)\.\s", " ".join(capsys.readouterr().out.split()))
    words = set(re.split(r"[ ,:]+", text))
    assert own <= words and not others & words


@pytest.mark.parametrize("name", TOKENIZERS)
def test_tokenizer_presets_fit_their_models(name, tmp_path):
    arguments = parse_arguments(TokenizerArguments, ["--config", name, "--output_dir", str(tmp_path)])
    with torch.device("meta"):
        autoencoder = build_autoencoder(arguments.autoencoder, arguments.autoencoder_overrides)
        resolve_sizes(arguments, autoencoder)
        method = build_method(arguments, adapt(autoencoder))
    without_ssl = "nossl" in name or name == "openmoji32_coarse"
    assert without_ssl == (method.description == "without self-supervision")
    assert ("nostc" in name) == (not autoencoder.config.staged_compression)
    if not without_ssl:
        assert arguments.ssl_global_crop_size % method.mask_group_pixels == 0
    if "imagenet" in name:
        assert adapt(autoencoder).spatial_ratio == 32 and arguments.resolution == 256
        assert arguments.perceptual == "lpips-vgg" and autoencoder.config.latent_channels == (
            256 if "c256" in name else 128
        )


@pytest.mark.parametrize("name", [*ADAPTED, *HEADS])
def test_adaptation_to_larger_images_trains_few_layers_at_its_resolution(name, tmp_path):
    options = ["--config", name, "--output_dir", str(tmp_path)]
    if name in HEADS:
        arguments = parse_arguments(DecoderArguments, [*options, "--autoencoder", "runs/adapted/model"])
        assert (arguments.trained_layers, arguments.resolution) == ("head", HEADS[name])
        return
    arguments = parse_arguments(TokenizerArguments, options)
    with torch.device("meta"):
        autoencoder = build_autoencoder(arguments.autoencoder, arguments.autoencoder_overrides)
    resolve_sizes(arguments, autoencoder)
    assert arguments.resolution == ADAPTED[name] == autoencoder.config.sample_size
    total = autoencoder.num_parameters()
    freeze_layers(autoencoder, arguments)
    assert 0 < autoencoder.num_parameters(only_trainable=True) < 0.3 * total


def values_and_sources(text):
    """Each key of a preset, with the comment above it; keys without a line between them share one."""
    comment, is_open, found = "", False, {}
    for line in text.splitlines():
        if line.startswith("#"):
            comment = comment + line if is_open else line
            is_open = True
        else:
            found[line.partition(":")[0]] = comment
            is_open = False
    return found


@pytest.mark.parametrize("name", LATER)
def test_what_came_after_the_paper_changes_a_preset_in_values_that_name_their_source(name):
    text = (FOLDER / f"{name}.yaml").read_text()
    assert "Not run here." in text
    changed = values_and_sources(text)
    assert f"extends: {LATER[name]}\n" in text and len(changed) > 1
    for key in changed.keys() - {"extends"}:
        assert re.search(r"\(arXiv \d{4}\.\d{5}\)|docs/\w+\.md", changed[key]), key
        assert changed[key] != changed["extends"], key
    base = yaml.safe_load((FOLDER / f"{LATER[name]}.yaml").read_text())
    ours = yaml.safe_load(text)
    assert all(base.get(key) != value for key, value in ours.items() if key != "extends")


def test_alignment_sees_a_token_for_each_position_of_the_latent(tmp_path):
    argv = ["--config", "tc_ae_f32c128_imagenet256_muon_nossl_aligned", "--output_dir", str(tmp_path)]
    arguments = parse_arguments(TokenizerArguments, argv)
    with torch.device("meta"), without_pretrained_weights():
        autoencoder = build_autoencoder(arguments.autoencoder, arguments.autoencoder_overrides)
        resolve_sizes(arguments, autoencoder)
        alignment = build_latent_shaping(arguments, adapt(autoencoder), counting_accelerator()).shapings[0]
    # As many tokens of 14 pixels as the latent has positions.
    assert alignment.frozen_network.name == "dinov2-vitb14" and alignment.frozen_network.resolution == 8 * 14


@pytest.mark.parametrize("name", DECODERS)
def test_decoder_presets_are_read(name, tmp_path):
    argv = ["--config", name, "--output_dir", str(tmp_path), "--autoencoder", "runs/tokenizer/model"]
    arguments = parse_arguments(DecoderArguments, argv)
    assert arguments.discriminator_start_step < arguments.adversarial_start_step < arguments.max_train_steps


@pytest.mark.parametrize(
    ("name", "behind"), [(LIGHT_DECODERS[0], "tc-ae-xs-f8c32"), (LIGHT_DECODERS[1], "tc-ae-f32c128")]
)
def test_light_decoders_cost_less_than_a_quarter(name, behind, tmp_path):
    argv = ["--config", name, "--output_dir", str(tmp_path), "--autoencoder", "runs/tokenizer/model"]
    arguments = parse_arguments(DecoderArguments, argv)
    with torch.device("meta"):
        full = build_autoencoder(behind)
        light = build_autoencoder(behind, arguments.new_decoder)
    size = full.config.sample_size
    macs = [autoencoder_cost(model, size, size).decode_macs for model in (full, light)]
    assert macs[1] < macs[0] / 4
    if behind == "tc-ae-f32c128":
        assert light.config == build_named_autoencoder("tc-ae-f32c128-light").config


def test_a_config_extends_another_and_the_command_line_wins_over_both(tmp_path):
    (tmp_path / "mine.yaml").write_text("extends: openmoji32\nssl: dino\nlearning_rate: 1e-4\n")
    argv = ["--config", str(tmp_path / "mine.yaml"), "--output_dir", str(tmp_path), "--ssl", "dinov2"]
    mine = parse_arguments(TokenizerArguments, argv)
    base = parse_arguments(TokenizerArguments, ["--config", "openmoji32", "--output_dir", str(tmp_path)])
    assert (mine.ssl, mine.learning_rate, mine.autoencoder) == ("dinov2", 1e-4, base.autoencoder)
    assert base.ssl == "ibot" and base.learning_rate != 1e-4


def test_a_config_that_extends_itself_is_named(tmp_path, capsys):
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text(f"extends: {second}\n")
    second.write_text(f"extends: {first}\n")
    with pytest.raises(SystemExit) as stopped:
        parse_arguments(TokenizerArguments, ["--config", str(first), "--output_dir", str(tmp_path)])
    assert stopped.value.code == 2 and "extends itself" in capsys.readouterr().err
