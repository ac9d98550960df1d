"""Bad input to `train_dit` and `cache_latents`: one line that names it, exit code 2, nothing half-written."""

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from tcae_diffusers import AutoencoderTC
from tcae_diffusers.arguments import program_name
from tcae_diffusers.training import cache_latents, train_dit

from ..latent_commands import SMALL_DIT, TOKENIZER, cache, calibrated, home, run, train, with_tokens


def ends_in_one_line(capsys, main, *positional, **options):
    """The command exits with 2; returns its error line."""
    with pytest.raises(SystemExit) as stop:
        run(main, *positional, **options)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return [line for line in error.splitlines() if line.strip()][-1]


@pytest.fixture
def other_tokenizer(tmp_path):
    torch.manual_seed(1)
    AutoencoderTC(**TOKENIZER).save_pretrained(tmp_path / "other")
    return tmp_path / "other"


def test_train_dit_names_what_is_wrong_and_writes_nothing(tmp_path, capsys, other_tokenizer):
    tokenizer, latents = calibrated()
    truncated = shutil.copytree(latents, tmp_path / "truncated")
    shard = truncated / "latents-00001.safetensors"
    shard.write_bytes(shard.read_bytes()[:-5])
    (tmp_path / "config.yaml").write_text("learning_rat: 1.0e-3\n")
    output = tmp_path / "run"
    trained = train(tmp_path / "trained", max_train_steps=1) / "pipeline"
    good = {**SMALL_DIT, "tokenizer": tokenizer, "latents": latents, "output_dir": output}
    cases = [
        ({"tokenizer": other_tokenizer}, "made with another tokenizer"),
        (
            {"tokenizer": home() / "tokenizer", "latents": tmp_path / "nowhere"},
            f"{tmp_path / 'nowhere'} does not exist",
        ),
        ({"tokenizer": tmp_path / "nothing"}, f"no autoencoder at {tmp_path / 'nothing'}"),
        ({"latents": truncated}, "latents-00001.safetensors has"),
        ({"patch_size": 3}, "--patch_size 3 does not divide"),
        ({"null_class_id": 2}, "--null_class_id 2 is the id of a class"),
        ({"config": tmp_path / "config.yaml"}, "unknown key 'learning_rat'"),
        ({"learning_rates": 1}, "unknown argument --learning_rates"),
        ({"transformer": "tc-dit-m"}, "invalid choice: 'tc-dit-m'"),
        (
            {"label_dropout": 0, "sample_guidance_scale": 3},
            "--sample_guidance_scale 3.0 has no effect without --label_dropout;",
        ),
        ({"label_dropout": 1}, "--label_dropout 1.0 must be at least 0 and below 1"),
        ({"num_layers": 0}, "--num_layers 0 must be at least 1"),
        ({"min_snr_gamma": 5}, "--min_snr_gamma 5.0 has no effect without --objective epsilon or v_prediction"),
        (
            {"objective": "epsilon", "timestep_shift": 2},
            "--timestep_shift 2.0 has no effect without --objective flow_matching",
        ),
        (
            {"objective": "epsilon", "flow_prediction": "sample"},
            "--flow_prediction sample has no effect without --objective flow_matching",
        ),
        ({"extra_ema_decays": [0.5, 1.5]}, "must be at least 0 and below 1 each"),
        (
            {"transformer_weights": tmp_path},
            f"{tmp_path} is neither a transformer nor a pipeline",
        ),
        ({"transformer_weights": trained, "num_layers": 2}, "is absent, and that of the transformer to train"),
        (
            {"transformer_weights": trained, "attention_head_dim": 16},
            "give --transformer, --num_layers",
        ),
        ({"transformer_weights": trained, "transformer": "tc-dit"}, "is a DiTTransformer2DModel whose"),
        ({"transformer_weights": trained, "unconditional": True}, "with as many channels and classes"),
        ({"repa_weight": 0.5}, f"latent cache {latents} has no tokens; cache the latents anew"),
        (
            {"latents": with_tokens(), "repa_weight": 0.5, "repa_layer": 2},
            "--repa_layer 2 must be a block",
        ),
        ({"repa_weight": -1}, "--repa_weight -1.0 must be 0 or more"),
        ({"repa_layer": 1}, "--repa_layer 1 has no effect without --repa_weight;"),
        (
            {"repa_weight": 1, "repa_spatial_normalization": 2},
            "--repa_spatial_normalization 2.0 must be between",
        ),
        (
            {"repa_weight": 1, "repa_projector": "conv", "repa_projector_width": 8},
            "--repa_projector_width 8 must be omitted with --repa_projector conv",
        ),
        (
            {"latents": with_tokens(), "repa_weight": 1, "repa_spatial_normalization": 0.6, "patch_size": 2},
            "--repa_spatial_normalization 0.6 needs several tokens",
        ),
        ({"gfd_steps": 2}, "--gfd_reference None must be given with --gfd_steps"),
        ({"gfd_samples": 16}, "--gfd_samples 16 has no effect without --gfd_steps"),
        ({"posthoc_ema_steps": 2}, "--posthoc_ema_steps 2 has no effect without --posthoc_ema_sigmas"),
    ]
    for change, message in cases:
        line = ends_in_one_line(capsys, train_dit.main, **{**good, **change})
        assert message in line and "error: " in line, line
        assert not output.exists(), change
    blocked = tmp_path / "file"
    blocked.write_text("")
    line = ends_in_one_line(capsys, train_dit.main, **{**good, "output_dir": blocked / "run"})
    assert line.startswith(f"{program_name()}: error: ") and f"{blocked / 'run'}" in line


def test_a_checkpoint_of_another_run_is_not_continued(tmp_path, capsys):
    run_folder = train(tmp_path / "run")
    tokenizer, latents = calibrated()
    good = {**SMALL_DIT, "tokenizer": tokenizer, "latents": latents, "output_dir": run_folder}
    assert "pass --resume latest" in ends_in_one_line(capsys, train_dit.main, **good)
    before = {file: file.stat().st_mtime_ns for file in (run_folder / "checkpoints").rglob("*")}
    for change, name in (
        ({"seed": 1}, "its seed is 0, this run's is 1"),
        ({"train_batch_size": 8}, "its total batch is 4, this run's is 8"),
        ({"num_layers": 2}, "its model is"),
        ({"objective": "epsilon", "null_class_id": 3}, "its objective is"),
        ({"latents": with_tokens(), "repa_weight": 0.5}, "its alignment is None"),
    ):
        assert name in ends_in_one_line(capsys, train_dit.main, **{**good, **change}, resume="latest")
    assert {file: file.stat().st_mtime_ns for file in (run_folder / "checkpoints").rglob("*")} == before


def test_a_run_does_not_go_on_with_latents_of_another_normalisation(tmp_path, capsys):
    tokenizer = shutil.copytree(home() / "tokenizer", tmp_path / "tokenizer")
    latents = cache(tmp_path / "latents", tokenizer=tokenizer)
    good = {**SMALL_DIT, "tokenizer": tokenizer, "latents": latents, "output_dir": tmp_path / "run"}
    run(train_dit.main, **good)
    # What the run advised in its log: the statistics that it had not.
    cache(latents, tokenizer=tokenizer, write_statistics=True)
    line = ends_in_one_line(capsys, train_dit.main, **good, resume="latest")
    assert "belongs to another run: its normalisation of the latents is None" in line


def test_weights_of_a_pipeline_are_not_those_of_other_classes_or_predictions(tmp_path, capsys):
    trained = train(tmp_path / "trained", max_train_steps=1) / "pipeline"
    tokenizer, latents = calibrated()
    good = {**SMALL_DIT, "tokenizer": tokenizer, "latents": latents, "output_dir": tmp_path / "run"}
    good["transformer_weights"] = trained
    line = ends_in_one_line(capsys, train_dit.main, **good, objective="epsilon", null_class_id=3)
    assert "trained with prediction type 'flow_prediction', and this run has 'epsilon'" in line
    index = trained / "model_index.json"
    content = json.loads(index.read_text())
    names = list(content["id2label"].values())
    index.write_text(
        json.dumps({**content, "id2label": dict(zip("012", [names[1], names[0], names[2]], strict=True))})
    )
    line = ends_in_one_line(capsys, train_dit.main, **good)
    assert f"has the class {names[0]!r} as 1, and the latents have it as 0" in line
    # Classes that it does not know may begin with what it learned of others.
    index.write_text(json.dumps({**content, "id2label": dict(zip("012", "xyz", strict=True))}))
    run(train_dit.main, **{**good, "max_train_steps": 1})


def test_cache_latents_names_what_is_wrong_and_leaves_no_cache(tmp_path, capsys):
    broken = shutil.copytree(home() / "images", tmp_path / "broken")
    image = sorted(broken.rglob("*.png"))[4]
    image.write_bytes(image.read_bytes()[:200])
    empty = shutil.copytree(home() / "images", tmp_path / "empty")
    (empty / "nothing_in_it").mkdir()
    output = tmp_path / "latents"
    good = {"tokenizer": home() / "tokenizer", "data": home() / "images", "output_dir": output}
    cases = [
        ({"tokenizer": tmp_path / "none"}, f"no autoencoder at {tmp_path / 'none'}"),
        ({"data": tmp_path / "none"}, f"{tmp_path / 'none'}"),
        ({"data": empty}, "nothing_in_it"),
        ({"resolution": 20}, "20 is not a multiple of 8"),
        ({"batch_size": 0}, "--batch_size 0 must be at least 1"),
        ({"dtype": "int8"}, "invalid choice: 'int8'"),
        ({"flips": True}, "unknown argument --flips"),
        ({"data": broken}, image.name),
        ({"data": broken, "dataloader_num_workers": 1, "shard_size": 3}, image.name),
    ]
    for change, message in cases:
        line = ends_in_one_line(capsys, cache_latents.main, **{**good, **change})
        assert message in line and "error: " in line, line
        assert not (output / "manifest.json").exists()
        if change.get("data") != broken:
            assert not output.exists(), change
        shutil.rmtree(output, ignore_errors=True)
    (tmp_path / "file").write_text("")
    line = ends_in_one_line(capsys, cache_latents.main, **{**good, "output_dir": tmp_path / "file" / "latents"})
    assert line.startswith(f"{program_name()}: error: cannot write the latent cache") and "[Errno" not in line


def test_a_collapsed_channel_is_named_and_the_tokenizer_stays_as_it_was(tmp_path, capsys):
    tokenizer = shutil.copytree(home() / "tokenizer", tmp_path / "tokenizer")
    file = tokenizer / "diffusion_pytorch_model.safetensors"
    state = load_file(file)
    state["encoder.to_latent.linear_out.weight"][2] = 0
    save_file(state, file, metadata={"format": "pt"})
    before = file.read_bytes()
    options = {"tokenizer": tokenizer, "data": home() / "images", "output_dir": tmp_path / "latents"}
    line = ends_in_one_line(capsys, cache_latents.main, "--write_statistics", **options)
    assert "channels [2] of the latent are constant" in line
    assert file.read_bytes() == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_read_only_output_folder_is_named(tmp_path, capsys):
    (tmp_path / "locked").mkdir(mode=0o500)
    tokenizer, latents = calibrated()
    options = {**SMALL_DIT, "tokenizer": tokenizer, "latents": latents, "output_dir": tmp_path / "locked"}
    assert "cannot be written" in ends_in_one_line(capsys, train_dit.main, **options)
