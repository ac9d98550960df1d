"""What `finetune_decoder` trains: the decoder and its discriminator, never the encoder, for any autoencoder."""

import functools
import json
import shutil

import diffusers
import pytest
import torch
from accelerate import PartialState
from safetensors.torch import load_file

from tcae_diffusers import AutoencoderTC
from tcae_diffusers.arguments import parse_arguments
from tcae_diffusers.data.images.training_dataset import collate_training_views
from tcae_diffusers.data.latents.cache import LatentCache
from tcae_diffusers.data.latents.calibration import warn_of_noise_without_unit
from tcae_diffusers.data.sample_labels import label_sequence
from tcae_diffusers.evaluation.pictures.drawing import draw, load_pipeline
from tcae_diffusers.metrics.features import FeatureNetwork
from tcae_diffusers.metrics.frechet import frechet_distance
from tcae_diffusers.metrics.model_cost import autoencoder_cost
from tcae_diffusers.models.fingerprint import TokenizerFingerprint
from tcae_diffusers.objectives.decoder_finetuning import FrozenEncoderTokenizer, frozen_fingerprint
from tcae_diffusers.objectives.latent_noise import draw_noise
from tcae_diffusers.training import finetune_decoder

from ..latent_commands import FOREIGN, calibrated, home, reset_accelerate, weights
from ..latent_commands import train as train_dit
from ..tokenizer_commands import (
    DECODER_OPTIONS,
    NEW_DECODER,
    checkpoint,
    finetune,
    trained_tokenizer,
    uninterrupted_finetuning,
    with_effect,
)
from .test_train_tcae import BASELINES


@pytest.fixture
def started(tmp_path):
    """`started(**options)`: a run that has everything built and no step done."""

    def start(**options):
        reset_accelerate()
        defaults = {
            "autoencoder": trained_tokenizer(),
            "train_data": home() / "images",
            "output_dir": tmp_path / "run",
        }
        argv = []
        for name, value in {**defaults, **with_effect(DECODER_OPTIONS, options), **options}.items():
            values = value if isinstance(value, list) else [value]
            argv += [f"--{name}", *map(str, values)] if values else []
        return finetune_decoder.start(parse_arguments(finetune_decoder.DecoderArguments, argv))

    yield start
    reset_accelerate()


def first_batch(run):
    return collate_training_views([run.dataset[(0, index)] for index in range(run.arguments.train_batch_size)])


def test_encoder_and_statistics_stay_bit_identical_and_latents_with_them():
    before = AutoencoderTC.from_pretrained(trained_tokenizer())
    after = AutoencoderTC.from_pretrained(uninterrupted_finetuning() / "model")
    assert frozen_fingerprint(before) == frozen_fingerprint(after)
    images = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(before.encode(images).latent, after.encode(images).latent)
    old, new = before.decoder.state_dict(), after.decoder.state_dict()
    same = [name for name, value in old.items() if torch.equal(value, new[name])]
    assert same == []
    described = json.loads((uninterrupted_finetuning() / "run.json").read_text())
    assert described["encoder_sha256"] == frozen_fingerprint(before)
    assert "without a perceptual loss" in described["losses"] and "adaptive hinge (patchgan)" in described["losses"]


def test_a_new_decoder_is_trained_behind_the_very_encoder_and_statistics(tmp_path):
    tokenizer, latents = calibrated()
    shape = json.dumps({"decoder_hidden_size": 8, "decoder_num_layers": [1, 0]})
    folder = finetune(tmp_path / "run", autoencoder=tokenizer, new_decoder=shape)
    full, light = (AutoencoderTC.from_pretrained(path) for path in (tokenizer, folder / "model"))
    assert (light.config.decoder_hidden_size, tuple(light.config.decoder_num_layers)) == (8, (1, 0))
    assert light.config.hidden_size == full.config.hidden_size == 16
    kept = {name: value for name, value in full.state_dict().items() if not name.startswith("decoder.")}
    assert {"latent_mean", "latent_std", "encoder.class_token"} <= kept.keys()
    assert all(torch.equal(value, light.state_dict()[name]) for name, value in kept.items())
    images = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(light.encode(images).latent, full.encode(images).latent)
        assert light(images).sample.shape == images.shape
    # The latents of the one are those of the other, also for the cache and for what is trained on it.
    LatentCache(latents, expected_tokenizer=light)
    described = json.loads((folder / "run.json").read_text())
    assert described["decoder_macs"] == autoencoder_cost(light, 16, 16).decode_macs
    assert described["decoder_macs"] < autoencoder_cost(full, 16, 16).decode_macs
    assert described["encoder_sha256"] == frozen_fingerprint(full)


def test_a_new_decoder_must_undo_the_compression(tmp_path, capsys):
    FOREIGN["AutoencoderDC"]().save_pretrained(tmp_path / "dc")
    smaller = json.dumps({"decoder_block_out_channels": [8]})
    with pytest.raises(SystemExit):
        finetune(tmp_path / "run", autoencoder=tmp_path / "dc", resolution=16, new_decoder=smaller)
    error = capsys.readouterr().err
    assert "AutoencoderDC returned 8x8 pixels for images of 16x16; use a decoder that enlarges as much as" in error
    assert not (tmp_path / "run").exists()


def test_the_new_decoder_is_a_function_of_the_seed_and_no_part_of_the_old_one(started):
    old = AutoencoderTC.from_pretrained(trained_tokenizer()).decoder
    same_shape = {"new_decoder": '{"decoder_num_attention_heads": 2}'}
    first, again, other = (started(**same_shape, seed=seed).autoencoder.decoder for seed in (0, 0, 1))
    assert torch.equal(first.proj_out.weight, again.proj_out.weight)
    for another in (other, old):
        assert not torch.equal(first.proj_out.weight, another.proj_out.weight)


def test_a_new_decoder_of_another_autoencoder(tmp_path):
    torch.manual_seed(0)
    original = FOREIGN["AutoencoderDC"]()
    original.save_pretrained(tmp_path / "original")
    options = {"autoencoder": tmp_path / "original", "resolution": 16, "max_train_steps": 2}
    shape = json.dumps({"decoder_block_out_channels": [4, 4]})
    renewed = diffusers.AutoencoderDC.from_pretrained(
        finetune(tmp_path / "run", **options, new_decoder=shape) / "model"
    )
    assert frozen_fingerprint(renewed) == frozen_fingerprint(original)
    assert renewed.decoder.conv_in.weight.shape[0] == 4 and original.decoder.conv_in.weight.shape[0] == 8
    assert TokenizerFingerprint.of(renewed) == TokenizerFingerprint.of(original)


def test_a_run_with_another_decoder_is_not_resumed(tmp_path, capsys):
    finetune(tmp_path / "run", **NEW_DECODER, max_train_steps=3)
    with pytest.raises(SystemExit):
        finetune(tmp_path / "run", max_train_steps=3, resume="latest")
    assert "decoder_hidden_size" in capsys.readouterr().err


@pytest.mark.parametrize("noise", [0, 0.5])
def test_noise_on_latents_without_a_unit_is_warned_of(started, caplog, noise):
    for autoencoder in (trained_tokenizer(), home() / "tokenizer"):
        run = started(latent_noise=noise, autoencoder=autoencoder)
        for step in range(2):
            run.backward([first_batch(run)], step, 0)
    warnings = [record.message for record in caplog.records if "--latent_noise 0.5" in record.message]
    assert len(warnings) == (1 if noise else 0) and all("run cache_latents" in warning for warning in warnings)


@pytest.mark.parametrize(("factor", "warned"), [(1.0, False), (0.1, True), (10.0, True)])
def test_noise_without_a_unit_is_warned_of_for_every_autoencoder(caplog, factor, warned):
    model, images = FOREIGN["AutoencoderKL"]().eval(), torch.rand(8, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        spread = model.encode(images).latent_dist.mode().transpose(0, 1).flatten(1).std(dim=1).mean()
    PartialState()  # accelerate's loggers ask for it
    model.register_to_config(scaling_factor=factor / float(spread))
    warn_of_noise_without_unit(model, 0.0, images)
    assert not caplog.records
    warn_of_noise_without_unit(model, 0.5, images)
    assert [("scaling_factor in its config.json" in record.message) for record in caplog.records] == [True] * warned


def test_noise_is_in_units_of_all_channels_together_where_they_have_one_scale(caplog):
    torch.manual_seed(0)
    model, images = FOREIGN["AutoencoderKL"]().eval(), torch.rand(8, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        # One channel varies ten times as much as the others.
        model.quant_conv.weight[0] *= 10
        spread = model.encode(images).latent_dist.mode().std()
    PartialState()
    model.register_to_config(scaling_factor=1 / float(spread))
    warn_of_noise_without_unit(model, 0.5, images)
    assert not caplog.records
    # It scales its latent itself, to a tenth here, and no command sets that.
    rae = FOREIGN["AutoencoderRAE"]().eval()
    rae.register_to_config(scaling_factor=0.1)
    warn_of_noise_without_unit(rae, 0.5, images)
    assert [record.message.rpartition("; ")[2] for record in caplog.records] == ["choose a noise of that size"]


def test_an_encoder_that_adds_noise_in_training_adds_none_while_it_is_frozen():
    rae = FOREIGN["AutoencoderRAE"]()
    rae.noise_tau = 0.8
    tokenizer = FrozenEncoderTokenizer(rae).train()
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    assert torch.equal(tokenizer(images), tokenizer(images)) and any(part.training for part in rae.decoder.modules())


def test_noise_has_the_unit_of_the_latents_that_diffusion_models_see():
    plain = FrozenEncoderTokenizer(FOREIGN["AutoencoderKL"](), noise=0.6)
    latent = torch.zeros(64, 4, 8, 8)
    deviation, noise = draw_noise(
        latent, [torch.Generator().manual_seed(seed) for seed in range(64)], plain._deviation
    )
    drawn = deviation * noise
    same = [0.6 / 0.3 * torch.randn((), generator=torch.Generator().manual_seed(seed)).abs() for seed in range(64)]
    torch.testing.assert_close(drawn.flatten(1).std(1), torch.stack(same), rtol=0.3, atol=0)


def test_the_fingerprint_sees_the_smallest_change_outside_the_decoder_alone(tiny_tcae):
    before = frozen_fingerprint(tiny_tcae)
    with torch.no_grad():
        next(tiny_tcae.decoder.parameters()).add_(1.0)
        assert frozen_fingerprint(tiny_tcae) == before
        tiny_tcae.latent_std[0] += 1e-6
        assert frozen_fingerprint(tiny_tcae) != before


def test_a_changed_encoder_is_never_written(started):
    run = started()
    with torch.no_grad():
        run.autoencoder.encoder.class_token.add_(1e-6)
    with pytest.raises(RuntimeError, match="encoder changed"):
        run.save()
    assert not (run.run.folder / "model").exists()


@pytest.mark.parametrize(
    ("step", "decoder_sees", "discriminator_learns"), [(0, False, False), (1, False, True), (2, True, True)]
)
def test_who_learns_when(started, step, decoder_sees, discriminator_learns):
    run = started()
    run.side.model.train()
    metrics = run.backward([first_batch(run)], step, 0)
    assert ("train/loss_gan" in metrics) == decoder_sees
    assert ("train/loss_discriminator" in metrics) == discriminator_learns
    with_gradient = {name.split(".")[0] for name, p in run.autoencoder.named_parameters() if p.grad is not None}
    assert with_gradient == {"decoder"}
    gradients = [parameter.grad for parameter in run.adversary.discriminator.parameters()]
    assert all((gradient is not None) == discriminator_learns for gradient in gradients)
    if decoder_sees:
        expected = metrics["train/loss_l1"] + 0.75 * metrics["train/adaptive_weight"] * metrics["train/loss_gan"]
        torch.testing.assert_close(metrics["train/loss"], expected)
        assert 0 < metrics["train/adaptive_weight"] <= 1e4


def test_a_step_that_is_not_finite_is_skipped_by_both_sides(started):
    run = started(adversarial_start_step=0, discriminator_start_step=0)
    run.side.model.train()
    run.backward([first_batch(run)], 0, 0)
    before = {name: value.clone() for name, value in run.autoencoder.state_dict().items()}
    discriminator = {name: value.clone() for name, value in run.adversary.discriminator.state_dict().items()}
    optimizers = [side.optimizer for side in run.sides]
    assert run.run.guard.mark(optimizers, torch.tensor(float("nan")), torch.tensor(1.0)) == 1
    for optimizer in optimizers:
        optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in run.autoencoder.state_dict().items())
    assert all(torch.equal(v, discriminator[name]) for name, v in run.adversary.discriminator.state_dict().items())


def test_noise_is_a_function_of_the_generators_and_only_there_in_training(tiny_tcae):
    tokenizer = FrozenEncoderTokenizer(tiny_tcae, noise=0.5).train()
    assert tokenizer.training and tiny_tcae.decoder.training and not tiny_tcae.encoder.training
    images = torch.rand(3, 3, 32, 32)

    def decode(seeds):
        generators = None if seeds is None else [torch.Generator().manual_seed(seed) for seed in seeds]
        with torch.no_grad():
            return tokenizer(images, generators)

    assert torch.equal(decode([1, 2, 3]), decode([1, 2, 3]))
    torch.testing.assert_close(decode([1, 2, 3])[2], decode([7, 8, 3])[2])
    assert not torch.allclose(decode([1, 2, 3]), decode([4, 5, 6]))
    torch.testing.assert_close(decode(None), tiny_tcae(images).sample)


def test_the_discriminator_is_saved_with_its_own_average():
    folder = uninterrupted_finetuning()
    saved = weights(folder / "discriminator")
    trained = load_file(checkpoint(folder) / "model_1.safetensors")
    assert saved.keys() == trained.keys() and not any(torch.equal(saved[key], trained[key]) for key in saved)


@pytest.mark.parametrize("name", BASELINES)
def test_decoders_of_other_autoencoders_learn_too(tmp_path, name):
    torch.manual_seed(0)
    original = getattr(diffusers, name)(**BASELINES[name])
    original.save_pretrained(tmp_path / "original")
    options = {"autoencoder": tmp_path / "original", "resolution": 16, "max_train_steps": 3}
    tuned = getattr(diffusers, name).from_pretrained(finetune(tmp_path / "run", **options) / "model")
    assert frozen_fingerprint(tuned) == frozen_fingerprint(original)
    assert not torch.equal(tuned.decoder.conv_in.weight, original.decoder.conv_in.weight)


def test_a_frozen_feature_discriminator_trains(tmp_path):
    pytest.importorskip("efficientnet_lite_pytorch")
    options = {"discriminator": "efficientnet-lite2", "adversarial_start_step": 0, "discriminator_start_step": 0}
    options |= {
        "discriminator_r1_weight": 0,
        "max_train_steps": 1,
        "train_batch_size": 2,
        "perceptual": "efficientnet-lite1",
    }
    folder = finetune(tmp_path / "run", **options)
    assert (
        "efficientnet-lite1-features + 0.75 adaptive hinge (efficientnet-lite2)"
        in json.loads((folder / "run.json").read_text())["losses"]
    )


def test_the_frozen_features_of_a_discriminator_are_in_the_precision_of_the_run(started):
    pytest.importorskip("efficientnet_lite_pytorch")
    run = started(
        discriminator="efficientnet-lite0",
        mixed_precision="bf16",
        adversarial_start_step=0,
        discriminator_start_step=0,
        discriminator_r1_weight=0,
        train_batch_size=2,
    )
    backbone, seen = run.adversary.loss.frozen_network, []
    convolution = next(module for module in backbone.modules() if isinstance(module, torch.nn.Conv2d))
    convolution.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    run.backward([first_batch(run)], 0, 0)
    # The generator's reconstructions, then real images and reconstructions for the discriminator.
    assert len(seen) >= 2 and set(seen) == {torch.bfloat16}


def test_without_an_adversary_the_run_says_so(tmp_path):
    folder = finetune(tmp_path / "run", discriminator="none", max_train_steps=2)
    assert "without an adversarial loss" in (folder / "run.json").read_text()
    assert not (folder / "discriminator").exists()


@functools.cache
def trained_pipeline():
    """Trained on the latents of the calibrated tokenizer."""
    return train_dit(home() / "runs" / "dit-for-decoders") / "pipeline"


HELDOUT = {"heldout_images": 9, "heldout_samples": 10, "heldout_num_inference_steps": 2, "heldout_steps": 3}
HELDOUT |= {"heldout_data": lambda: home() / "images", "heldout_pipeline": trained_pipeline}
HELDOUT |= {"heldout_rfd": "efficientnet-lite0", "autoencoder": lambda: calibrated()[0]}


def called(options):
    return {name: value() if callable(value) else value for name, value in options.items()}


def test_generated_latents_are_decoded_and_compared_beside_the_encoded_ones(started, tmp_path):
    pytest.importorskip("efficientnet_lite_pytorch")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = finetune(tmp_path / "run", **called(HELDOUT), report_to="tensorboard", **NEW_DECODER)
    events = EventAccumulator(str(run / "logs" / "finetune_decoder"))
    events.Reload()
    logged = events.Scalars("heldout/gFD-efficientnet-lite0")
    assert [event.step for event in logged] == [event.step for event in events.Scalars("heldout/psnr")] == [3, 6]
    assert logged[0].value != logged[1].value

    # The last is the distance of what the pipeline draws with the decoder that was saved.
    pipeline = load_pipeline(trained_pipeline())
    pipeline.vae = AutoencoderTC.from_pretrained(run / "model")
    sampling = {"num_inference_steps": 2, "guidance_scale": 1.0}
    images = draw(pipeline, label_sequence([1, 1, 1], 10), list(range(10)), seed=0, **sampling)
    network = FeatureNetwork("efficientnet-lite0")
    heldout = started(**called(HELDOUT), output_dir=tmp_path / "again").preview.images
    drawn = network(torch.from_numpy(images).permute(0, 3, 1, 2))["features"]
    expected = frechet_distance(drawn.numpy(), network(heldout)["features"].numpy())
    assert logged[1].value == pytest.approx(expected, rel=1e-3)
    pictures = {file.name for file in (run / "pictures").iterdir()}
    assert {"step-00000003-generated.png", "step-00000006-generated.png"} <= pictures


def saved_without(name):
    """A tokenizer whose weights were renamed to `name`, or removed."""
    folder = shutil.copytree(home() / "tokenizer", home() / f"without-{name}", dirs_exist_ok=True)
    weights = folder / "diffusion_pytorch_model.safetensors"
    weights.unlink() if name == "removed" else weights.rename(folder / name)
    return folder


def saved_kl():
    FOREIGN["AutoencoderKL"]().save_pretrained(home() / "kl")
    return home() / "kl"


BAD_INPUT = {
    "a pipeline of another encoder": (
        {**HELDOUT, "autoencoder": trained_tokenizer},
        "its own autoencoder has another encoder, config_sha256",
    ),
    "a pipeline of another size": ({**HELDOUT, "resolution": 32}, "draws images of 16 pixels, not of --resolution 32"),
    "no pipeline": ({**HELDOUT, "heldout_pipeline": "nowhere/at/all"}, "nowhere/at/all"),
    "a pipeline and no features": ({**HELDOUT, "heldout_rfd": []}, "--heldout_rfd None must be given with"),
    "a pipeline and no images": ({**HELDOUT, "heldout_data": []}, "--heldout_data None must be given with"),
    "guidance below none": ({"heldout_guidance_scale": 0.5}, "--heldout_guidance_scale 0.5 must be at least 1"),
    "too few samples": ({**HELDOUT, "heldout_samples": 7}, "--heldout_samples 7 must be at least 8"),
    "a new decoder that changes the encoder": (
        {"new_decoder": '{"hidden_size": 16}'},
        "--new_decoder: the decoder of AutoencoderTC has no config argument 'hidden_size'; did you mean",
    ),
    "a new decoder of sizes that do not fit": (
        {"new_decoder": '{"decoder_hidden_size": 18}'},
        "decoder_hidden_size 18 divided by decoder_num_attention_heads 2",
    ),
    "a new decoder that is no number": ({"new_decoder": '{"decoder_hidden_size": "half"}'}, "cannot be built"),
    "a new decoder where none can be told": (
        {"autoencoder": saved_kl, "new_decoder": '{"decoder_hidden_size": 16}', "resolution": 16},
        "AutoencoderKL has no entries of its decoder alone",
    ),
    "no tokenizer": ({"autoencoder": "nowhere"}, "nowhere"),
    "a tokenizer without weights": ({"autoencoder": lambda: saved_without("removed")}, "has no weights"),
    "weights under another name": (
        {"autoencoder": lambda: saved_without("model.safetensors")},
        "holds model.safetensors, and diffusers reads weights from diffusion_pytorch_model.safetensors",
    ),
    "another kind of model": ({"autoencoder": home}, "config.json"),
    "images too small for the discriminator": ({"discriminator_layers": 3}, "discriminator_layers 3"),
    "LPIPS of tiny images": ({"perceptual": "lpips-vgg"}, "32x32"),
    "unknown augmentation": (
        {"discriminator_diff_augment": ["blur"]},
        "--discriminator_diff_augment: invalid choice",
    ),
    "negative noise": ({"latent_noise": -1}, "--latent_noise -1.0 must be 0 or more"),
    "noise that is no number": ({"latent_noise": "nan"}, "--latent_noise nan must be 0 or more"),
    "samples of no pipeline": ({"heldout_samples": 9}, "--heldout_samples 9 has no effect without --heldout_pipeline"),
    "images of nothing held out": ({"heldout_images": 9}, "--heldout_images 9 has no effect without --heldout_data"),
    "negative weight": ({"discriminator_r1_weight": -1}, "--discriminator_r1_weight -1.0 must be 0 or more"),
    "an interval of zero": ({"discriminator_r1_interval": 0}, "--discriminator_r1_interval 0 must be at least 1"),
    "DINO that is not there": ({"discriminator": "dino", "discriminator_weights_path": "/nowhere/at/all"}, "/nowhere"),
    "a discriminator average that never moves": ({"discriminator_ema_decay": 1}, "discriminator_ema_decay 1"),
}


@pytest.mark.parametrize("name", BAD_INPUT)
def test_bad_input(tmp_path, capsys, name):
    options, words = BAD_INPUT[name]
    options = called(options)
    with pytest.raises(SystemExit) as stopped:
        finetune(tmp_path / "run", **options)
    message = capsys.readouterr().err
    assert stopped.value.code == 2 and words in message and "Traceback" not in message, message
    assert not (tmp_path / "run").exists()
