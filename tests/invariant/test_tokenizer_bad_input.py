"""Bad input to `train_tcae`: one line that says what is wrong, exit code 2, and nothing half-written or lost."""

import errno
import json
import os
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tcae_diffusers.trainer import checkpoint as checkpoint_module
from tcae_diffusers.training import train_tcae

from ..latent_commands import FOREIGN, assert_same_training_state, home, run
from ..tar_files import write_shards
from ..tokenizer_commands import OPTIONS, TINY, checkpoint, train, uninterrupted, with_effect


def folder_of_texts(place: Path) -> Path:
    place.mkdir()
    text_file(place / "notes.txt", "")
    return place


def folder_with_an_image_outside_classes(place: Path) -> Path:
    shutil.copytree(home() / "images", place)
    Image.new("RGB", (16, 16)).save(place / "loose.png")
    return place


def folder_with_an_empty_class(place: Path) -> Path:
    shutil.copytree(home() / "images", place)
    (place / "empty").mkdir()
    return place


def folder_of_broken_images(place: Path) -> Path:
    (place / "class").mkdir(parents=True)
    for index in range(3):
        (place / "class" / f"{index}.png").write_bytes(b"no image")
    return place


def text_file(place: Path, text: str) -> Path:
    place.write_text(text)
    return place


def saved_model(place: Path, damage=None) -> Path:
    from tcae_diffusers import AutoencoderTC

    AutoencoderTC(**TINY).save_pretrained(place)
    if damage is not None:
        damage(place)
    return place


def truncate_weights(place: Path) -> None:
    os.truncate(place / "diffusion_pytorch_model.safetensors", 1000)


def change_width(place: Path) -> None:
    config = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps({**config, "hidden_size": 64}))


def rae(place: Path) -> dict:
    """Options that train an autoencoder whose decoder always makes images of 16 pixels."""
    FOREIGN["AutoencoderRAE"]().save_pretrained(place / "rae")
    return {"autoencoder": place / "rae", "resolution": 16, "ssl_drop_path": 0}


def shards(folder: Path, damaged: bool = False) -> str:
    """A stream of two tar shards."""
    write_shards(folder, shards=2, rows=4)
    if damaged:
        # The second file claims to be longer than what is left.
        content = bytearray((folder / "part-1.tar").read_bytes())
        header = tarfile.TarInfo("0005.png")
        header.size = 10**6
        content[2048:2560] = header.tobuf()
        (folder / "part-1.tar").write_bytes(content)
    return f"stream:webdataset:{folder}/part-*.tar"


def overridden(**values) -> str:
    return json.dumps({**TINY, **values})


# name: (options made from a temporary folder, words that the message must hold)
CASES = {
    # files
    "missing data folder": (lambda t: {"train_data": t / "nowhere"}, ["nowhere", "does not exist"]),
    "data folder is a file": (lambda t: {"train_data": text_file(t / "file", "")}, ["is a file", "root/class"]),
    "no image": (lambda t: {"train_data": folder_of_texts(t / "data")}, ["contains no images"]),
    "images in and outside classes": (
        lambda t: {"train_data": folder_with_an_image_outside_classes(t / "data")},
        ["both inside and outside class folders", "loose.png"],
    ),
    "empty class": (lambda t: {"train_data": folder_with_an_empty_class(t / "data")}, ["empty", "contains no images"]),
    "only broken images": (lambda t: {"train_data": folder_of_broken_images(t / "data")}, ["none of the 3 images"]),
    "more broken images than allowed": (
        lambda t: {"train_data": folder_of_broken_images(t / "data"), "max_broken_images": 1},
        ["2 broken images, 1 allowed", ".png"],
    ),
    "the same in a worker process": (
        lambda t: {
            "train_data": folder_of_broken_images(t / "data"),
            "max_broken_images": 1,
            "dataloader_num_workers": 1,
        },
        ["2 broken images, 1 allowed", ".png"],
    ),
    "unknown OpenMoji split": (lambda t: {"train_data": "openmoji:tomorrow"}, ["tomorrow", "train"]),
    "unknown Hugging Face dataset": (lambda t: {"train_data": f"datasets:{t}/nothing"}, ["nothing"]),
    "missing held-out folder": (lambda t: {"heldout_data": t / "nowhere"}, ["nowhere", "does not exist"]),
    "output folder is a file": (lambda t: {"output_dir": text_file(t / "file", "")}, ["file", "cannot be written"]),
    "output folder below a file": (
        lambda t: {"output_dir": text_file(t / "file", "") / "run"},
        ["file/run", "cannot be written"],
    ),
    # sizes
    "resolution no multiple of the ratio": (lambda t: {"resolution": 20}, ["resolution 20", "multiple of 8"]),
    "global crops no multiple of the ratio": (
        lambda t: {"ssl_global_crop_size": 12},
        ["global_crop_size 12", "8 or 16"],
    ),
    "local crops no multiple of the ratio": (lambda t: {"ssl_local_crop_size": 9}, ["local_crop_size 9", "8 or 16"]),
    "resolution of zero": (lambda t: {"resolution": -8}, ["--resolution -8", "at least 1"]),
    "crop scale out of range": (lambda t: {"ssl_global_crop_min_scale": 1.5}, ["ssl_global_crop_min_scale", "1.5"]),
    "local crops above global ones": (
        lambda t: {"ssl_local_crop_min_scale": 0.3},
        ["ssl_local_crop_min_scale", "at most --ssl_global_crop_min_scale, which is 0.25"],
    ),
    # the model
    "unknown preset": (lambda t: {"autoencoder": "tc-ae-xs-f8c33"}, ["tc-ae-xs-f8c33", "tc-ae-xs-f8c32"]),
    "unknown config argument": (
        lambda t: {"autoencoder_overrides": overridden(patchsize=4)},
        ["'patchsize'", "patch_size"],
    ),
    "config that does not fit together": (
        lambda t: {"autoencoder_overrides": overridden(hidden_size=33)},
        ["33"],
    ),
    "overrides are not JSON": (lambda t: {"autoencoder_overrides": "{patch_size: 4}"}, ["not JSON", "patch_size"]),
    "folder without a config": (lambda t: {"autoencoder": home() / "images"}, ["config.json", "does not exist"]),
    "config is not JSON": (lambda t: {"autoencoder": text_file(t / "c.json", "{")}, ["c.json", "not JSON"]),
    "config of a class that is no autoencoder": (
        lambda t: {"autoencoder": text_file(t / "c.json", '{"_class_name": "UNet2DModel"}')},
        ["UNet2DModel", "not an autoencoder"],
    ),
    "truncated weights": (
        lambda t: {"autoencoder": saved_model(t / "m", truncate_weights), "autoencoder_overrides": "{}"},
        ["weights cannot be loaded"],
    ),
    "weights of another shape": (
        lambda t: {"autoencoder": saved_model(t / "m", change_width), "autoencoder_overrides": "{}"},
        ["not readable by AutoencoderTC", "64"],
    ),
    "patches larger than those of the weights": (
        lambda t: {"autoencoder": saved_model(t / "m"), "autoencoder_overrides": '{"patch_size": 3}'},
        ["patch_size 3", "use a divisor of"],
    ),
    "self-supervision of a class without tokens": (
        lambda t: {
            "autoencoder": text_file(t / "c.json", '{"_class_name": "AutoencoderKL", "sample_size": 16}'),
            "autoencoder_overrides": "{}",
        },
        ["--ssl ibot", "AutoencoderKL", "--ssl none"],
    ),
    # losses
    "no reconstruction term": (lambda t: {"pixel_weight": 0, "mse_weight": 0}, ["all reconstruction weights are 0"]),
    "negative weight": (lambda t: {"pixel_weight": -1}, ["--pixel_weight -1.0 must be 0 or more"]),
    "LPIPS of tiny images": (lambda t: {"perceptual": "lpips-vgg"}, ["32x32", "efficientnet-lite0"]),
    "LPIPS without its weights": (
        lambda t: {"perceptual": "lpips-alex", "perceptual_weights_path": t / "alex.pth", "resolution": 32},
        ["alex.pth", "ImageNet weights"],
    ),
    "head sizes that contradict": (
        lambda t: {"ssl_patch_out_dim": 32},
        ["--ssl_patch_out_dim 32 must be --ssl_out_dim, which is 16", "--ssl_head_sharing"],
    ),
    "temperature of zero": (
        lambda t: {"ssl_student_temperature": 0},
        ["--ssl_student_temperature 0.0 must be positive"],
    ),
    "teacher temperature of zero": (
        lambda t: {"ssl_patch_teacher_temperature": 0},
        ["--ssl_patch_teacher_temperature 0", "positive"],
    ),
    "momentum of a centre out of range": (
        lambda t: {"ssl_patch_center_momentum": 1.5},
        ["--ssl_patch_center_momentum 1.5 must be between 0 and 1"],
    ),
    "mask ratios the wrong way round": (lambda t: {"ssl_mask_ratio_min": 0.6}, ["--ssl_mask_ratio_max 0.5"]),
    "share of steps above one": (
        lambda t: {"latent_equivariance": 1.5},
        ["--latent_equivariance 1.5", "between 0 and 1"],
    ),
    "latents scaled to nothing": (
        lambda t: {"latent_equivariance_min_scale": 0},
        ["--latent_equivariance_min_scale 0.0", "above 0"],
    ),
    "alignment without weight": (
        lambda t: {"latent_alignment_weight": 0},
        ["--latent_alignment_weight 0.0", "positive"],
    ),
    "margin beyond any cosine": (
        lambda t: {"latent_alignment_distance_margin": 1.5},
        ["--latent_alignment_distance_margin 1.5", "between 0 and 1"],
    ),
    "alignment to a network that is not there": (
        lambda t: {"latent_alignment": "dinov2", "latent_alignment_weights_path": t / "none"},
        ["DINO weights", "none", "efficientnet-lite0"],
    ),
    "noise of negative strength": (lambda t: {"latent_denoising": -1}, ["--latent_denoising -1.0", "0 or more"]),
    "no latent channel": (lambda t: {"latent_min_channels": 0}, ["--latent_min_channels 0", "at least 1"]),
    "more latent channels than there are": (
        lambda t: {"latent_min_channels": 5},
        ["--latent_min_channels 5", "from 1 to 4", "AutoencoderTC"],
    ),
    "images too small for the discriminator once scaled": (
        lambda t: {"latent_equivariance": 0.5, "discriminator": "patchgan", "discriminator_layers": 2},
        ["--latent_equivariance_min_scale 0.25", "8 pixels", "at least 12", "0.75"],
    ),
    "scaled latents of a decoder of one size": (
        lambda t: {"latent_equivariance": 0.5, "ssl": "none", "autoencoder_overrides": "{}", **rae(t)},
        ["AutoencoderRAE", "one size", "--latent_equivariance 0"],
    ),
    "drop path with recomputed activations": (lambda t: {"gradient_checkpointing": True}, ["drop_path", "choose one"]),
    # arguments
    "unknown option": (lambda t: {"learning_rat": 1}, ["--learning_rat", "--learning_rate"]),
    "unknown choice": (lambda t: {"ssl": "ibott"}, ["ibott", "ibot"]),
    "text for a number": (lambda t: {"train_batch_size": "many"}, ["many"]),
    "no steps": (lambda t: {"max_train_steps": 0}, ["--max_train_steps 0", "at least 1"]),
    "turned latents of a single position": (
        lambda t: {"latent_equivariance": 0.5, "resolution": 8, "ssl": "none"},
        ["a single position, as of 8 pixels here", "--latent_equivariance 0"],
    ),
    "a codebook": (
        lambda t: {
            "autoencoder": text_file(t / "config.json", '{"_class_name": "VQModel", "norm_num_groups": 8}'),
            **{"autoencoder_overrides": "{}", "ssl": "none", "resolution": 16},
        },
        ["is a VQModel", "finetune_decoder"],
    ),
    "KoLeo without a neighbour": (
        lambda t: {"ssl": "dinov2", "train_batch_size": 1},
        ["--train_batch_size 1", "--ssl_koleo_weight 0"],
    ),
    "channels of a discriminator that has none": (
        lambda t: {"discriminator": "efficientnet-lite0", "discriminator_channels": 8},
        ["--discriminator_channels 8 has no effect without --discriminator patchgan"],
    ),
    "weights of a discriminator that has none": (
        lambda t: {"discriminator": "patchgan", "discriminator_weights_path": t},
        ["--discriminator_weights_path", "without --discriminator efficientnet-lite0 or"],
    ),
    "negative seed": (lambda t: {"seed": -1}, ["--seed -1"]),
    "unknown tracker": (lambda t: {"report_to": "paper"}, ["paper"]),
    "unknown config": (lambda t: {"config": "openmoji33"}, ["openmoji33", "openmoji32"]),
    "unknown key in a config": (lambda t: {"config": text_file(t / "c.yaml", "max_steps: 3")}, ["max_steps"]),
    "unknown choice in a config": (
        lambda t: {"config": text_file(t / "c.yaml", "ssl_mask_shape: star")},
        ["star", "block"],
    ),
    "text for a number in a config": (lambda t: {"config": text_file(t / "c.yaml", "seed: one")}, ["seed", "one"]),
    "config that is no mapping": (lambda t: {"config": text_file(t / "c.yaml", "- 3")}, ["c.yaml", "key: value"]),
    "config that is not YAML": (lambda t: {"config": text_file(t / "c.yaml", "a: [")}, ["c.yaml"]),
    # streams, of which it shows only while they are read
    "more workers than shards": (
        lambda t: {"train_data": shards(t), "dataloader_num_workers": 3},
        ["3 DataLoader workers for 2 shards"],
    ),
    "a damaged shard": (lambda t: {"train_data": shards(t, damaged=True)}, ["part-1.tar is damaged"]),
    "a damaged shard in a worker": (
        lambda t: {"train_data": shards(t, damaged=True), "dataloader_num_workers": 2},
        ["part-1.tar is damaged"],
    ),
    "files that are no images": (
        lambda t: {"train_data": folder_of_broken_images(t / "data"), "max_broken_images": 1},
        ["it is not an image, or its format cannot be read"],
    ),
    # resume
    "resume from nowhere": (lambda t: {"resume": t / "step-00000003"}, ["step-00000003", "does not exist"]),
}


# What shows only once training has begun.
WHILE_TRAINING = (
    *("only broken images", "more broken images than allowed", "the same in a worker process"),
    *("more workers than shards", "a damaged shard", "a damaged shard in a worker", "files that are no images"),
)


def run_expecting_error(capsys, options) -> str:
    """The message of a run that must end with exit code 2."""
    with pytest.raises(SystemExit) as stopped:
        run(train_tcae.main, **options)
    captured = capsys.readouterr().err
    assert stopped.value.code == 2, captured
    assert "Traceback" not in captured
    lines = [line for line in captured.splitlines() if "error: " in line]
    assert len(lines) == 1, captured
    return lines[0]


@pytest.mark.parametrize("name", CASES)
def test_bad_input(tmp_path, capsys, name):
    make_options, words = CASES[name]
    changed = make_options(tmp_path)
    defaults = {**with_effect(OPTIONS, changed), "train_data": home() / "images", "output_dir": tmp_path / "run"}
    if "config" in changed:
        # The command line wins over a config, so what the config says wrongly must not be said there.
        defaults.pop("seed", None)
    message = run_expecting_error(capsys, {**defaults, **changed})
    missing = [word for word in words if word not in message]
    assert not missing, message
    assert not (tmp_path / "run" / "model").exists() and not list(tmp_path.glob("run/checkpoints/*"))
    if name not in WHILE_TRAINING:
        # These are found while training; all others leave no trace.
        assert not (tmp_path / "run").exists()


OTHER_RUNS = {
    "another model": ({"autoencoder_overrides": overridden(latent_channels=8)}, ["model", "'latent_channels': 4"]),
    "another batch, as of another number of ranks": ({"train_batch_size": 2}, ["total batch is 4, this run's is 2"]),
    "another seed": ({"seed": 1}, ["seed is 0"]),
    "another length": ({"max_train_steps": 7}, ["max_train_steps is 6"]),
    "another objective": ({"ssl": "none"}, ["ssl is ibot"]),
    "another mean over masked tokens": (
        {"ssl_mim_average": "masked_tokens"},
        ["mim_average is None", "masked_tokens"],
    ),
    "other losses": ({"pixel_weight": 2.0}, ["losses is"]),
    "another shaping of the latent": ({"latent_equivariance": 0.5}, ["latent shaping is None", "0.5 of the steps"]),
}


@pytest.mark.parametrize("name", OTHER_RUNS)
def test_a_checkpoint_of_another_run_is_refused_and_left_as_it_is(tmp_path, capsys, name):
    changed, words = OTHER_RUNS[name]
    folder = shutil.copytree(uninterrupted(), tmp_path / "run")
    before = (folder / "arguments.yaml").read_text()
    defaults = {**with_effect(OPTIONS, changed), "train_data": home() / "images"}
    defaults |= {"output_dir": folder, "resume": "latest"}
    message = run_expecting_error(capsys, {**defaults, **changed})
    assert all(word in message for word in ["belongs to another run", *words]), message
    assert (folder / "arguments.yaml").read_text() == before
    assert_same_training_state(checkpoint(folder), checkpoint(uninterrupted()))


def test_a_checkpoint_with_other_images_is_refused(tmp_path, capsys):
    images = shutil.copytree(home() / "images", tmp_path / "images")
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(images / "circles" / "new.png")
    folder = shutil.copytree(uninterrupted(), tmp_path / "run")
    options = {**OPTIONS, "train_data": images, "output_dir": folder, "resume": "latest"}
    assert "its data is" in run_expecting_error(capsys, options)


@pytest.mark.parametrize("moment", ["while a file is written", "while it is synced", "while it is renamed"])
def test_a_full_disk_while_saving_keeps_what_was_saved_before(tmp_path, capsys, monkeypatch, moment):
    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def nearly_full(step):
        return step >= 6

    save = checkpoint_module.CheckpointManager.save
    target = {
        "while a file is written": (torch, "save"),
        "while it is synced": (checkpoint_module, "sync"),
        "while it is renamed": (checkpoint_module.os, "rename"),
    }[moment]

    def save_on_a_full_disk(self, step, samples_seen):
        with pytest.MonkeyPatch.context() as patch:
            if nearly_full(step):
                patch.setattr(*target, full)
            return save(self, step, samples_seen)

    options = {**OPTIONS, "train_data": home() / "images", "output_dir": tmp_path / "run"}
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_module.CheckpointManager, "save", save_on_a_full_disk)
        message = run_expecting_error(capsys, options)
    assert "No space left" in message and "step-00000006" in message and "intact" in message
    assert [folder.name for folder in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000003"]
    train(tmp_path / "run", resume="latest")
    assert_same_training_state(checkpoint(tmp_path / "run"), checkpoint(uninterrupted()))


def test_loss_that_stays_infinite_ends_the_run_with_the_last_finite_weights_intact(tmp_path, capsys, monkeypatch):
    compute_loss = train_tcae.TokenizerTraining.compute_loss

    def diverging(training, seen, step):
        loss, metrics = compute_loss(training, seen, step)
        return loss * (float("inf") if step >= 3 else 1.0), metrics

    monkeypatch.setattr(train_tcae.TokenizerTraining, "compute_loss", diverging)
    options = {**OPTIONS, "train_data": home() / "images", "output_dir": tmp_path / "run", "max_nonfinite_steps": 2}
    message = run_expecting_error(capsys, {**options, "log_steps": 1})
    assert "not finite for 2 steps in a row" in message
    assert_same_training_state(checkpoint(tmp_path / "run", 3), checkpoint(uninterrupted(), 3))


def test_single_infinite_steps_are_skipped_and_counted(tmp_path, monkeypatch, caplog):
    compute_loss = train_tcae.TokenizerTraining.compute_loss

    def one_bad_step(training, seen, step):
        loss, metrics = compute_loss(training, seen, step)
        return loss * (float("nan") if step == 2 else 1.0), metrics

    monkeypatch.setattr(train_tcae.TokenizerTraining, "compute_loss", one_bad_step)
    folder = train(tmp_path / "run")
    guard = torch.load(checkpoint(folder) / "custom_checkpoint_1.pkl", weights_only=True)
    assert guard["skipped"] == 1 and guard["in_a_row"] == 0
    optimizer = torch.load(checkpoint(folder) / "optimizer.bin", weights_only=True)
    assert {int(state["step"]) for state in optimizer["state"].values()} == {5}


def test_a_copy_of_the_images_goes_on_and_others_under_their_names_do_not(tmp_path, capsys):
    images = tmp_path / "images"
    for index, color in enumerate(["red", "green", "blue", "white"]):
        (images / "ab"[index % 2]).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), color).save(images / "ab"[index % 2] / f"{index}.bmp")
    options = {"max_train_steps": 1, "checkpointing_steps": 1, "ssl": "none", "resume": "latest"}
    output = train(tmp_path / "run", data=images, **options)
    train(output, data=shutil.copytree(images, tmp_path / "copy"), **options)
    # As many bytes as before.
    Image.new("RGB", (16, 16), "black").save(images / "a/0.bmp")
    with pytest.raises(SystemExit) as stop:
        train(output, data=images, **options)
    error = capsys.readouterr().err.splitlines()[-1]
    assert stop.value.code == 2 and "belongs to another run: its data is" in error
