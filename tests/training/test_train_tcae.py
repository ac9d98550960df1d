"""What `train_tcae` trains: the student by gradient, the teacher by averaging, any autoencoder, any of the losses."""

import io
import json
import tarfile
from dataclasses import replace
from types import SimpleNamespace

import diffusers
import pytest
import torch
from accelerate.utils import DistributedType
from safetensors.torch import load_file
from torch._dynamo.testing import CompileCounterWithBackend

from tcae_diffusers import AutoencoderTC
from tcae_diffusers.arguments import parse_arguments
from tcae_diffusers.data.images.pixel_range import to_signed
from tcae_diffusers.data.images.training_dataset import collate_training_views
from tcae_diffusers.data.sample_randomness import slot_generators
from tcae_diffusers.errors import InputError
from tcae_diffusers.evaluation.report.training_curves import read_scalars
from tcae_diffusers.trainer.adversary import build_adversary
from tcae_diffusers.trainer.fit import take_step
from tcae_diffusers.trainer.image_batches import image_loader
from tcae_diffusers.trainer.progress import TrainingProgress
from tcae_diffusers.training import train_tcae

from ..latent_commands import FOREIGN, assert_same_training_state, home, reset_accelerate, weights
from ..tokenizer_commands import OPTIONS, checkpoint, train, train_interrupted, uninterrupted, with_effect


@pytest.fixture
def started(tmp_path):
    """`started(**options)`: a run that has everything built and no step done."""

    def start(**options):
        reset_accelerate()
        options = {
            **with_effect(OPTIONS, options),
            "train_data": home() / "images",
            "output_dir": tmp_path / "run",
            **options,
        }
        argv = [part for name, value in options.items() for part in (f"--{name}", str(value))]
        return train_tcae.start(parse_arguments(train_tcae.TokenizerArguments, argv))

    yield start
    reset_accelerate()


def first_batch(run):
    return collate_training_views([run.dataset[(0, index)] for index in range(run.arguments.train_batch_size)])


def losses_of(run, batch, step=0):
    """Loss and log of one forward pass."""
    return run.compute_loss(run.forward(batch, step, 0), step)


def test_the_teacher_takes_no_gradient_and_moves_by_the_schedule_towards_the_student(started):
    run = started(max_train_steps=3, ssl_teacher_momentum=0.5)
    batches = iter(image_loader(run.dataset, run.arguments, run.run.accelerator, 0))
    progress = TrainingProgress(run.run.accelerator, "test", 3, 0, run.run.total_batch, 100)
    teacher, hooks = run.method.teacher, run.hooks()
    run.side.model.train()
    # A cosine from 0.5 to 1 over three steps.
    for step, momentum in enumerate((0.5, 0.75, 1.0)):
        before = {name: value.clone() for name, value in teacher.state_dict().items()}
        skipped = take_step(run.run, batches, [run.side], run.backward, hooks, progress, step)
        hooks.after_step(step, skipped)
        student = {
            **{f"encoder.{name}": value for name, value in run.autoencoder.encoder.state_dict().items()},
            **{f"head.{name}": value for name, value in run.method.parts.head.state_dict().items()},
        }
        for name, value in teacher.state_dict().items():
            torch.testing.assert_close(value, momentum * before[name] + (1 - momentum) * student[name])
        assert any(not torch.equal(student[name], before[name]) for name in student)
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in teacher.parameters())
    assert not teacher.training


@pytest.mark.parametrize("features", ["last", "first_stage"])
def test_masks_hide_whole_groups_and_nothing_of_a_hidden_patch_reaches_the_student(started, features):
    run = started(ssl_mask_probability=1.0, ssl_features=features, ssl_num_local_crops=0, ssl_drop_path=0)
    batch, cpu = first_batch(run), torch.device("cpu")
    views = run.method.prepare(batch, [], cpu)
    token_mask = views.token_mask
    # 16 pixels in patches of 2 give 8x8 tokens; staged compression merges 2x2 of them.
    assert token_mask.shape == (2, 4, 8, 8)
    groups = token_mask.unfold(2, 2, 2).unfold(3, 2, 2).flatten(-2)
    assert torch.equal(groups.all(-1), groups.any(-1)) and groups.any()
    # The head is asked about exactly the hidden tokens, on its own grid.
    on_grid = groups.any(-1) if features == "last" else token_mask
    assert torch.equal(views.masked_tokens.indices, on_grid.flatten().nonzero().squeeze(1))

    crops = views.global_crops
    pixel_mask = token_mask.repeat_interleave(2, -2).repeat_interleave(2, -1).unsqueeze(2)
    changed = torch.where(pixel_mask, torch.randn_like(crops), crops)
    assert not torch.equal(changed, crops)
    run.side.model.eval()
    with torch.no_grad():
        images = to_signed(batch["pixel_values"])
        first, second, third = (
            run.side.model(images, replace(views, global_crops=given)).method
            for given in (crops, changed, torch.where(pixel_mask, crops, -crops))
        )
    assert torch.equal(first["patch_logits"], second["patch_logits"])
    assert torch.equal(first["class_logits"], second["class_logits"])
    assert not torch.allclose(first["patch_logits"], third["patch_logits"])


def test_dino_draws_no_masks_and_has_no_mask_token(started):
    run = started(ssl="dino")
    batch = first_batch(run)
    assert "masks" not in batch and run.method.parts.mask_token is None
    loss, metrics = losses_of(run, batch, 0)
    assert "train/loss_cls" in metrics and "train/loss_mim" not in metrics
    loss.backward()
    unused = [name for name, parameter in run.student.named_parameters() if parameter.grad is None]
    assert unused == []


def test_patch_tokens_have_a_temperature_and_a_centre_of_their_own(started):
    ends = {"ssl_teacher_temperature_start": 0.04, "ssl_teacher_temperature": 0.1, "max_train_steps": 10}
    run = started(
        **ends,
        ssl_patch_teacher_temperature_start=0.02,
        ssl_patch_teacher_temperature=0.08,
        ssl_patch_center_momentum=0.6,
        ssl_mim_average="masked_tokens",
        ssl_mask_probability=1.0,
        ssl_drop_path=0,
    )
    # The warm-up takes 0.3 of ten steps.
    for step, expected in ((0, (0.04, 0.02)), (1, (0.06, 0.04)), (3, (0.1, 0.08)), (9, (0.1, 0.08))):
        assert run.method.temperatures(step) == pytest.approx(expected)
    loss = run.method.distillation_loss
    assert (loss.center_momentum, loss.patch_center_momentum) == (0.9, 0.6)
    assert run.run.checkpoints.identity["mim_average"] == "masked_tokens"

    run.side.model.eval()
    batch, passed = first_batch(run), {}
    loss.register_forward_pre_hook(lambda module, args, kwargs: passed.update(kwargs), with_kwargs=True)
    losses_of(run, batch, 1)
    assert (passed["teacher_temperature"], passed["patch_teacher_temperature"]) == pytest.approx((0.06, 0.04))

    plain = started(**ends)
    assert plain.method.temperatures(1) == pytest.approx((0.06, 0.06))
    loss = plain.method.distillation_loss
    assert loss.patch_center_momentum == 0.9 and loss.mim_average == "images"
    # Checkpoints from before there was a choice have no such entry.
    assert "mim_average" not in plain.run.checkpoints.identity


def test_drop_path_touches_the_student_in_training_alone(started):
    run = started(ssl_drop_path=0.5, ssl_num_local_crops=1)
    batch = first_batch(run)
    images = to_signed(batch["pixel_values"])

    def student(step=0):
        return run.forward(batch, step, 0).output

    with torch.no_grad():
        views = student() and run.method.prepare(batch, slot_generators(0, 0, 0, 4), images.device)
        teacher = run.method.teacher(views)[0]
        run.side.model.train()
        dropped, again, later = student(), student(), student(step=1)
        run.side.model.eval()
        whole = student()
        assert torch.equal(teacher, run.method.teacher(views)[0])
    logits = [output.method["class_logits"] for output in (dropped, again, later, whole)]
    assert torch.equal(logits[0], logits[1])
    assert not torch.equal(logits[0], logits[2]) and not torch.equal(logits[0], logits[3])
    plain = AutoencoderTC(**json.loads(OPTIONS["autoencoder_overrides"])).eval()
    plain.load_state_dict(run.autoencoder.state_dict())
    with torch.no_grad():
        # The decoder sees the latents that it will get, whatever is dropped of the views.
        for output in (whole, dropped, later):
            torch.testing.assert_close(plain(images).sample, output.reconstruction)
    assert run.autoencoder.config.keys() == plain.config.keys()


def test_frozen_networks_run_in_the_precision_of_the_student_and_their_logits_in_fp32(started):
    run = started(mixed_precision="bf16", ssl_mask_probability=1.0)
    seen = {}

    def remember(name):
        def hook(module, inputs, output):
            seen.setdefault(name, output)

        return hook

    for name, encoder in (("student", run.autoencoder.encoder), ("teacher", run.method.teacher.encoder)):
        encoder.first_blocks[0].attn.to_q.register_forward_hook(remember(name))
    run.method.teacher.head.register_forward_hook(remember("logits"))
    losses_of(run, first_batch(run))
    assert seen["student"].dtype == seen["teacher"].dtype == torch.bfloat16
    assert {logits.dtype for logits in seen["logits"]} == {torch.float32}
    assert {parameter.dtype for parameter in run.method.teacher.parameters()} == {torch.float32}


def test_masks_have_the_same_size_in_pixels_with_and_without_staged_compression(started):
    sizes = set()
    for staged in (True, False):
        overrides = {**json.loads(OPTIONS["autoencoder_overrides"]), "staged_compression": staged}
        run = started(autoencoder_overrides=json.dumps(overrides), ssl_mask_probability=1.0)
        sizes.add(run.method.mask_group_pixels)
        assert first_batch(run)["masks"].shape[-2:] == (4, 4)
        loss, _ = losses_of(run, first_batch(run))
        assert torch.isfinite(loss)
    assert sizes == {4}


ADVERSARY = {
    "discriminator": "patchgan",
    "discriminator_layers": 2,
    "discriminator_channels": 8,
    "discriminator_learning_rate": 1e-2,
    "discriminator_start_step": 1,
    "adversarial_start_step": 2,
}


def test_joint_training_has_an_adversarial_term_where_asked_for(started):
    run = started(**ADVERSARY, reconstruction_weight=2.0, ssl_weight=0.5)
    run.adversary.begin_step([], 1, run.reconstruction_loss, 2)
    loss, metrics = losses_of(run, first_batch(run), step=2)
    reconstruction = metrics["train/loss_rec"] + 0.75 * metrics["train/adaptive_weight"] * metrics["train/loss_gan"]
    torch.testing.assert_close(loss, 2.0 * reconstruction + 0.5 * metrics["train/loss_ssl"])
    assert "adaptive hinge (patchgan)" in run.describe()["losses"]
    assert started().adversary is None


def test_options_of_the_adversarial_term_reach_it(started):
    run = started(
        **ADVERSARY,
        adversarial_loss="non_saturating",
        adversarial_weight=0.25,
        adversarial_max_adaptive_weight=3.0,
        discriminator_beta1=0.3,
        discriminator_beta2=0.7,
        discriminator_weight_decay=0.2,
    )
    loss = run.adversary.loss
    assert (loss.kind, loss.weight, loss.max_adaptive_weight) == ("non_saturating", 0.25, 3.0)
    (group,) = run.adversary.side.optimizer.param_groups
    assert (group["betas"], group["weight_decay"]) == ((0.3, 0.7), 0.2)
    assert "0.25 adaptive non_saturating (patchgan)" in run.describe()["losses"]


def test_options_of_self_distillation_reach_it(started):
    options = {"ssl_centering": "sinkhorn_knopp", "ssl_head_sharing": "separate", "ssl_center_momentum": 0.6}
    chosen, default = started(**options, ssl_local_crop_min_scale=0.1), started(output_dir=home() / "method-s-own")
    loss = chosen.method.distillation_loss
    assert (loss.centering, loss.center_momentum) == ("sinkhorn_knopp", 0.6)
    assert default.method.distillation_loss.centering == "momentum"
    heads = [{name.split(".")[0] for name, _ in run.method.parts.head.named_parameters()} for run in (chosen, default)]
    assert heads[0] - heads[1] == {"patch_mlp", "patch_last_layer"}
    assert chosen.method.crops()["local_crop_scale"][0] == 0.1
    # In the middle of a warm-up of half the run, the temperature is in the middle too.
    run = started(
        ssl_teacher_temperature_start=0.02,
        ssl_teacher_temperature=0.06,
        ssl_teacher_temperature_warmup_fraction=2 / 3,
        output_dir=home() / "warming-up",
    )
    middle, _ = run.method.temperatures(2)
    assert middle == pytest.approx(0.04) and run.method.temperatures(4)[0] == pytest.approx(0.06)


def test_joint_training_with_a_discriminator_resumes_as_if_nothing_had_happened(tmp_path):
    halves = {**ADVERSARY, "train_batch_size": 2, "gradient_accumulation_steps": 2}
    whole = train(tmp_path / "whole", **halves)
    assert weights(whole / "discriminator")
    folder = train_interrupted(tmp_path / "run", **halves)
    assert_same_training_state(checkpoint(folder), checkpoint(whole))
    ours, theirs = weights(folder / "discriminator"), weights(whole / "discriminator")
    assert all(torch.equal(value, theirs[key]) for key, value in ours.items())


def test_a_scaled_learning_rate_is_that_of_all_images_of_a_step(started):
    run = started(learning_rate=0.1, scale_lr=True, train_batch_size=2, gradient_accumulation_steps=4).run
    assert run.learning_rate(0) == pytest.approx(0.1 * 8 / 256)


def test_fp16_and_a_discriminator_are_refused(tmp_path):
    # accelerate has no scaler for fp16 on a CPU.
    arguments = parse_arguments(
        train_tcae.TokenizerArguments, ["--discriminator", "patchgan", "--output_dir", str(tmp_path)]
    )
    accelerator = SimpleNamespace(mixed_precision="fp16", distributed_type=DistributedType.MULTI_GPU)
    with pytest.raises(InputError, match="fp16 cannot be combined with --discriminator; use bf16"):
        build_adversary(arguments, accelerator)


def test_the_adaptive_weight_of_accumulated_batches_is_that_of_one(tmp_path):
    # Steps so small that the weights stay where they are; what differs is the adaptive weight alone.
    options = {**ADVERSARY, "ssl_drop_path": 0, "learning_rate": 1e-9, "final_learning_rate": 1e-9}
    options |= {"adversarial_start_step": 0, "log_steps": 1, "report_to": "tensorboard", "max_train_steps": 1}
    found = []
    for name, accumulated in (("one", 1), ("four", 4)):
        folder = train(
            tmp_path / name, **options, train_batch_size=4 // accumulated, gradient_accumulation_steps=accumulated
        )
        found.append(read_scalars(folder)["train/adaptive_weight"][1])
    assert found[0] == pytest.approx(found[1], rel=1e-3)


def test_compiled_blocks_drop_the_same_paths_and_are_compiled_in_the_first_step_alone(started, monkeypatch):
    torch.compiler.reset()
    counter, compile_module = CompileCounterWithBackend("eager"), torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: compile_module(module, backend=counter))
    # Two batches and four lengths of sequence; a decoder and a teacher of the same blocks, which drop nothing.
    options = {"ssl_drop_path": 0.5, "ssl_num_local_crops": 1, "ssl_mask_probability": 1.0}
    compiled, plain = started(**options, compile=True), started(**options, output_dir=home() / "not-compiled")
    plain.student.load_state_dict(compiled.student.state_dict())
    plain.method.teacher.load_state_dict(compiled.method.teacher.state_dict())
    frames, losses = [], []
    for step in range(3):
        gradients = []
        for run in (compiled, plain):
            run.side.model.train()
            run.side.model.zero_grad()
            loss, _ = losses_of(run, first_batch(run), step)
            loss.backward()
            run.method.distillation_loss.update_centers()
            gradients.append({name: parameter.grad for name, parameter in run.student.named_parameters()})
            losses.append(loss.detach())
        torch.testing.assert_close(losses[-2], losses[-1])
        for name, gradient in gradients[0].items():
            torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-4, atol=1e-6, msg=name)
        frames.append(counter.frame_count)
    # The same images and weights in every step: what differs is what was dropped.
    assert len({loss.item() for loss in losses[1::2]}) == 3
    assert frames[0] > 0 and frames == [frames[0]] * 3
    torch.compiler.reset()


def test_the_saved_model_holds_the_averaged_weights_and_the_run_says_what_it_was_trained_with():
    folder = uninterrupted()
    model = AutoencoderTC.from_pretrained(folder / "model")
    ema = torch.load(checkpoint(folder) / "custom_checkpoint_0.pkl", weights_only=True)
    for parameter, average in zip(model.parameters(), ema["shadow_params"], strict=True):
        assert torch.equal(parameter, average) and average.dtype == torch.float32
    trained = load_file(checkpoint(folder) / "model.safetensors")
    assert not torch.equal(trained["autoencoder.encoder.patch_embed.weight"], model.encoder.patch_embed.weight)
    assert "without a perceptual loss" in json.loads((folder / "run.json").read_text())["losses"]


def test_averaged_weights_move_in_bf16_training_where_a_bf16_average_would_not(tmp_path):
    folder = train(tmp_path / "run", mixed_precision="bf16", max_train_steps=2, ema_decay=0.9999)
    ema = torch.load(checkpoint(folder, 2) / "custom_checkpoint_0.pkl", weights_only=True)
    assert {average.dtype for average in ema["shadow_params"]} == {torch.float32}
    # One step of an average at 0.9999 towards a weight that is 1 % away: below half the spacing of bf16 numbers.
    start, goal = torch.tensor(1.0), torch.tensor(1.01)
    assert torch.lerp(start, goal, 1e-4) > start
    assert torch.lerp(start.bfloat16(), goal.bfloat16(), 1e-4) == start.bfloat16()


@pytest.mark.parametrize("network", ["efficientnet-lite0", "efficientnet-lite1"])
def test_a_perceptual_loss_is_used_named_and_logged(started, network):
    pytest.importorskip("efficientnet_lite_pytorch")
    run = started(perceptual=network, perceptual_weight=0.5, ssl="none", train_batch_size=2)
    loss, metrics = losses_of(run, first_batch(run), 0)
    name = f"train/loss_{network}-features"
    assert metrics[name] > 0
    expected = metrics["train/loss_l1"] + metrics["train/loss_mse"] + 0.5 * metrics[name]
    torch.testing.assert_close(loss, expected)
    assert f"0.5 {network}-features" in run.describe()["losses"]
    assert "without self-supervision" in run.describe()["losses"]


BASELINES = {
    "AutoencoderDC": {
        "latent_channels": 4,
        "attention_head_dim": 8,
        "encoder_block_types": ["ResBlock", "EfficientViTBlock"],
        "decoder_block_types": ["ResBlock", "EfficientViTBlock"],
        "encoder_block_out_channels": [8, 16],
        "decoder_block_out_channels": [8, 16],
        "encoder_layers_per_block": [1, 1],
        "decoder_layers_per_block": [1, 1],
        "encoder_qkv_multiscales": [[], []],
        "decoder_qkv_multiscales": [[], []],
        "upsample_block_type": "interpolate",
        "downsample_block_type": "Conv",
        "decoder_norm_types": "rms_norm",
        "decoder_act_fns": "silu",
    },
    "AutoencoderKL": {
        "down_block_types": ["DownEncoderBlock2D", "DownEncoderBlock2D"],
        "up_block_types": ["UpDecoderBlock2D", "UpDecoderBlock2D"],
        "block_out_channels": [8, 16],
        "norm_num_groups": 4,
        "sample_size": 16,
    },
}


@pytest.mark.parametrize("name", BASELINES)
def test_the_config_decides_the_class_and_baselines_train_resume_and_load(tmp_path, name):
    config = tmp_path / "baseline.json"
    config.write_text(json.dumps({"_class_name": name, **BASELINES[name]}))
    options = {
        "autoencoder": config,
        "autoencoder_overrides": "{}",
        "ssl": "none",
        "ssl_drop_path": 0,
        "resolution": 16,
    }
    whole = train(tmp_path / "whole", **options)
    model = getattr(diffusers, name).from_pretrained(whole / "model")
    assert model(torch.rand(1, 3, 16, 16)).sample.shape == (1, 3, 16, 16)
    assert json.loads((whole / "run.json").read_text())["autoencoder"] == name

    folder = train_interrupted(tmp_path / "run", **options)
    ours, theirs = (load_file(checkpoint(run) / "model.safetensors") for run in (folder, whole))
    assert all(torch.equal(value, theirs[key]) for key, value in ours.items())


def saved(folder, model):
    """A fresh autoencoder in `folder`, and the options with which it is trained on."""
    model.save_pretrained(folder)
    return {"autoencoder": folder, "autoencoder_overrides": "{}", "ssl": "none", "ssl_drop_path": 0}


def test_a_frozen_encoder_stays_and_the_average_is_of_what_is_trained(tmp_path):
    # The encoder of an AutoencoderRAE takes no gradient.
    options = saved(tmp_path / "rae", FOREIGN["AutoencoderRAE"]())
    folder = train(tmp_path / "run", **options, resolution=16)
    before, after = (weights(path) for path in (tmp_path / "rae", folder / "model"))
    changed = {name.partition(".")[0] for name, value in before.items() if not torch.equal(value, after[name])}
    assert changed == {"decoder"}
    last = load_file(checkpoint(folder) / "model.safetensors")
    assert not all(torch.equal(last[f"autoencoder.{name}"], after[name]) for name in after if name.startswith("dec"))


def test_images_must_have_the_size_of_their_reconstructions(tmp_path, capsys):
    options = saved(tmp_path / "rae", FOREIGN["AutoencoderRAE"]())
    with pytest.raises(SystemExit):
        train(tmp_path / "run", **options, resolution=32)
    assert "AutoencoderRAE returned 16x16 pixels for images of 32x32; pass --resolution 16" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_config_may_hold_what_its_class_wrote_beside_the_arguments(tmp_path, capsys):
    sides = {"encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8)}
    blocks = {"num_encoder_blocks": (1, 1), "num_decoder_blocks": (1, 1)}
    options = saved(tmp_path / "tiny", diffusers.AutoencoderTiny(**sides, **blocks))
    config = json.loads((tmp_path / "tiny" / "config.json").read_text())
    assert "block_out_channels" in config
    options["autoencoder"] = tmp_path / "tiny.json"
    options["autoencoder"].write_text(json.dumps(config))
    folder = train(tmp_path / "run", **options, resolution=16, max_train_steps=1)
    assert (folder / "model" / "config.json").is_file()
    options["autoencoder"].write_text(json.dumps({**config, "out_chanels": 3}))
    with pytest.raises(SystemExit):
        train(tmp_path / "typo", **options, resolution=16, max_train_steps=1)
    assert "no config argument 'out_chanels'" in capsys.readouterr().err


def test_training_goes_on_from_a_saved_model_without_its_old_statistics(started, tmp_path):
    model = AutoencoderTC(**json.loads(OPTIONS["autoencoder_overrides"]))
    model.set_latent_statistics(torch.ones(4), 2 * torch.ones(4))
    model.save_pretrained(tmp_path / "saved")
    run = started(autoencoder=tmp_path / "saved", autoencoder_overrides="{}")
    assert torch.equal(run.autoencoder.encoder.patch_embed.weight, model.encoder.patch_embed.weight)
    assert run.autoencoder.latent_mean.abs().sum() == 0 and (run.autoencoder.latent_std == 1).all()


def test_recomputed_activations_give_the_same_run(tmp_path):
    options = {"ssl_drop_path": 0, "max_train_steps": 2}
    plain = train(tmp_path / "plain", **options)
    checkpointed = train(tmp_path / "checkpointed", **options, gradient_checkpointing=True)
    ours, theirs = (load_file(checkpoint(run, 2) / "model.safetensors") for run in (plain, checkpointed))
    for key, value in ours.items():
        torch.testing.assert_close(value, theirs[key], rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def tars(tmp_path_factory):
    """Two tar shards of 8 images each."""
    folder = tmp_path_factory.mktemp("tars")
    for shard in range(2):
        with tarfile.open(folder / f"part-{shard}.tar", "w") as tar:
            for index, file in enumerate(sorted((home() / "images").rglob("*.png"))[shard * 8 : shard * 8 + 8]):
                for name, content in ((f"{index}.png", file.read_bytes()), (f"{index}.cls", b"1")):
                    info = tarfile.TarInfo(f"{shard}-{name}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    return folder


def test_a_stream_of_tar_shards_trains_and_resumes_where_it_was(tmp_path, tars):
    data = f"stream:webdataset:{tars}/part-*.tar"
    whole = train(tmp_path / "whole", data=data)
    assert "a stream of 2 shards" in (whole / "run.json").read_text()
    run = train_interrupted(tmp_path / "run", data=data)
    ours, theirs = (load_file(checkpoint(folder) / "model.safetensors") for folder in (run, whole))
    assert all(torch.equal(value, theirs[key]) for key, value in ours.items())


def test_the_columns_of_a_stream_are_checked_before_training(tmp_path, tars, capsys):
    with pytest.raises(SystemExit):
        train(tmp_path / "run", data=f"stream:webdataset:{tars}/part-*.tar?image=photo")
    assert "no column 'photo'" in capsys.readouterr().err and not (tmp_path / "run").exists()
