"""Foreign checkpoints: a made-up layout with fused qkv, running block numbers, 1x1 convolutions and a wrapper."""

import json
import re

import pytest
import safetensors.torch
import torch

from tcae_diffusers import AutoencoderTC
from tcae_diffusers.models.conversion import convert_checkpoint
from tcae_diffusers.models.convert import main

FOREIGN_KEY_MAP = {
    r"module\.(encoder|decoder)\.blocks\.0\.qkv\.(weight|bias)": [
        rf"\1.first_blocks.0.attn.{name}.\2" for name in ("to_q", "to_k", "to_v")
    ],
    r"module\.(encoder|decoder)\.blocks\.1\.qkv\.(weight|bias)": [
        rf"\1.last_blocks.0.attn.{name}.\2" for name in ("to_q", "to_k", "to_v")
    ],
    r"module\.(encoder|decoder)\.blocks\.0\.(.*)": r"\1.first_blocks.0.\2",
    r"module\.(encoder|decoder)\.blocks\.1\.(.*)": r"\1.last_blocks.0.\2",
    r"module\.(.*)": r"\1",
    r"loss\..*": None,
}


@pytest.fixture
def foreign(tiny_vae):
    """The weights of `tiny_vae` as another codebase would lay them out; no latent statistics, as elsewhere."""
    ours = {k: v for k, v in tiny_vae.state_dict().items() if not k.startswith("latent_")}
    weights = {"loss.discriminator.weight": torch.zeros(3)}
    for key, value in ours.items():
        key = key.replace("first_blocks.0", "blocks.0").replace("last_blocks.0", "blocks.1")
        if ".to_k." in key or ".to_v." in key:
            continue
        if ".to_q." in key:
            parts = [ours[_our_key(key).replace("to_q", name)] for name in ("to_q", "to_k", "to_v")]
            value, key = torch.cat(parts), key.replace("attn.to_q", "qkv")
        elif key.endswith("linear_out.weight"):
            value = value[..., None, None]  # as a 1x1 convolution
        weights[f"module.{key}"] = value.clone()
    return weights


def _our_key(key):
    return key.replace("blocks.0", "first_blocks.0").replace("blocks.1", "last_blocks.0")


@pytest.fixture
def config(tiny_vae):
    return dict(tiny_vae.config)


def assert_converted(model, tiny_vae):
    expected = tiny_vae.state_dict()
    assert all(torch.equal(v, expected[k]) for k, v in model.state_dict().items() if not k.startswith("latent_"))
    image = torch.rand(1, 3, 16, 16)
    latent = model.encode(image).latent
    statistics = tiny_vae.latent_mean[:, None, None], tiny_vae.latent_std[:, None, None]
    torch.testing.assert_close((latent - statistics[0]) / statistics[1], tiny_vae.encode(image).latent)


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_a_foreign_file_becomes_our_model(foreign, config, tiny_vae, tmp_path, suffix):
    file = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        safetensors.torch.save_file({k: v.contiguous() for k, v in foreign.items()}, file)
        model = convert_checkpoint(file, config, FOREIGN_KEY_MAP)
    else:
        torch.save({"epoch": 3, "model": {"ema": foreign}}, file)
        model = convert_checkpoint(file, config, FOREIGN_KEY_MAP, state_dict_key="model.ema")
    assert not model.training
    assert_converted(model, tiny_vae)


def test_the_command_writes_a_model_folder(foreign, tiny_vae, tmp_path):
    torch.save(foreign, tmp_path / "weights.pt")
    (tmp_path / "map.json").write_text(json.dumps(FOREIGN_KEY_MAP))
    tiny_vae.save_config(tmp_path / "config")
    main(
        [
            str(tmp_path / "weights.pt"),
            str(tmp_path / "out"),
            "--config",
            str(tmp_path / "config"),
            "--key_map",
            str(tmp_path / "map.json"),
        ]
    )
    assert_converted(AutoencoderTC.from_pretrained(tmp_path / "out"), tiny_vae)


@pytest.mark.parametrize(("text", "words"), [('{"a": "b",}', "is not JSON"), ("[]", "is no JSON object")])
def test_a_key_map_or_config_that_is_damaged_is_named(tiny_vae, tmp_path, capsys, text, words):
    tiny_vae.save_pretrained(tmp_path / "model")
    weights = str(tmp_path / "model" / "diffusion_pytorch_model.safetensors")
    (tmp_path / "bad.json").write_text(text)
    (tmp_path / "map.json").write_text("{}")
    for config, key_map, name in (("model", "bad.json", "--key_map"), ("bad.json", "map.json", "config")):
        files = ["--config", str(tmp_path / config), "--key_map", str(tmp_path / key_map)]
        with pytest.raises(SystemExit):
            main([weights, str(tmp_path / "out"), *files])
        assert f"{name} {tmp_path}/bad.json {words}" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_from_single_file_reads_our_layout_and_takes_a_key_map(foreign, tiny_vae, tmp_path):
    tiny_vae.save_pretrained(tmp_path)
    ours = AutoencoderTC.from_single_file(str(tmp_path / "diffusion_pytorch_model.safetensors"))
    assert all(torch.equal(v, tiny_vae.state_dict()[k]) for k, v in ours.state_dict().items())
    torch.save({"state_dict": foreign}, tmp_path / "foreign.ckpt")
    theirs = AutoencoderTC.from_single_file(
        str(tmp_path / "foreign.ckpt"), config=str(tmp_path), key_map=FOREIGN_KEY_MAP
    )
    assert_converted(theirs, tiny_vae)
    with pytest.raises(ValueError, match=r"unexpected: .*module\.[\s\S]*missing: "):
        AutoencoderTC.from_single_file(str(tmp_path / "foreign.ckpt"))
    with pytest.raises(ValueError, match=r"no config\.json next to the single file; pass config="):
        AutoencoderTC.from_single_file(dict(foreign))


def test_a_function_may_be_the_key_map(tiny_vae, config):
    renamed = {f"net/{key}": value for key, value in tiny_vae.state_dict().items()}
    model = convert_checkpoint(renamed, config, lambda key: key.removeprefix("net/"))
    assert all(torch.equal(v, tiny_vae.state_dict()[k]) for k, v in model.state_dict().items())


def drop(key):
    return lambda weights, key_map: weights.pop(key)


def put(key, value):
    return lambda weights, key_map: weights.__setitem__(key, value)


def rule(pattern, target):
    return lambda weights, key_map: key_map.__setitem__(pattern, target)


def first_rule(pattern, target):
    def change(weights, key_map):
        others = dict(key_map)
        key_map.clear()
        key_map.update({pattern: target, **others})

    return change


BIAS = "module.encoder.patch_embed.bias"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop(BIAS), r"missing: encoder\.patch_embed\.bias"),
        (put("optimizer.step", torch.zeros(1)), r"no rule for: optimizer\.step"),
        (put("module.encoder.patch_embd.bias", torch.zeros(16)), r"did you mean encoder\.patch_embed\.bias\?"),
        (put(BIAS, torch.zeros(17)), r"wrong shape: encoder\.patch_embed\.bias expects \(16,\), .* gives \(17,\)"),
        (put("module.encoder.blocks.0.qkv.bias", torch.zeros(47)), r"qkv\.bias \(47,\) cannot be split into 3 parts"),
        (put("module.latent_mean", torch.zeros(4)), r"missing: latent_std"),
        (rule(r"loss\..*", "encoder.patch_embed.bias"), r"encoder\.patch_embed\.bias expects"),
        (first_rule("x", 5), r"key_map: 'x' to 5; expected a new key, a list of new keys, or null"),
        (first_rule("x", ["a", None]), r"key_map: 'x' to \['a', None\]; expected"),
        (first_rule("(enc", None), r"key_map: '\(enc' to None cannot be applied: missing \)"),
        (
            first_rule(r"module\.encoder\.patch_embed\.bias", r"\2"),
            "cannot be applied: invalid group reference 2",
        ),
    ],
)
def test_every_weight_that_does_not_fit_is_named(foreign, config, change, message):
    key_map = dict(FOREIGN_KEY_MAP)
    change(foreign, key_map)
    with pytest.raises(ValueError, match=message):
        convert_checkpoint(foreign, config, key_map)


def test_a_key_map_that_is_none_is_refused(foreign, config):
    with pytest.raises(ValueError, match="key_map is a list; expected regular expressions"):
        convert_checkpoint(foreign, config, [BIAS])


def test_two_weights_for_one_place_are_refused(foreign, config):
    foreign["copy." + BIAS] = foreign[BIAS]
    with pytest.raises(ValueError, match=rf"given twice: encoder.patch_embed.bias by {re.escape(BIAS)} and copy"):
        convert_checkpoint(foreign, config, {r"copy\.module\.(.*)": r"\1", **FOREIGN_KEY_MAP})


def test_unreadable_files_and_configs_are_named(foreign, config, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.ckpt"):
        convert_checkpoint(tmp_path / "none.ckpt", config, {})
    (tmp_path / "broken.safetensors").write_bytes(b"not weights")
    with pytest.raises(ValueError, match=r"broken\.safetensors cannot be read"):
        convert_checkpoint(tmp_path / "broken.safetensors", config, {})
    torch.save({"model": foreign, "step": 3}, tmp_path / "nested.ckpt")
    with pytest.raises(ValueError, match=r"no tensors at its top level, only \['model', 'step'\]"):
        convert_checkpoint(tmp_path / "nested.ckpt", config, {})
    with pytest.raises(ValueError, match=r"no 'ema' of state_dict_key 'ema', only \['model', 'step'\]"):
        convert_checkpoint(tmp_path / "nested.ckpt", config, {}, state_dict_key="ema")
    with pytest.raises(ValueError, match="config 'tc-ae-huge' is neither"):
        convert_checkpoint(foreign, "tc-ae-huge", {})
