"""The cost of a step on paper against a real step of the command, counted by itself, and what follows from it."""

import dataclasses
import itertools
import json
from pathlib import Path

import pytest
import torch

from tcae_diffusers.arguments import parse_arguments
from tcae_diffusers.data.latents.cache import LatentCache
from tcae_diffusers.errors import InputError
from tcae_diffusers.metrics.mac_counter import FlopCounter
from tcae_diffusers.metrics.macs_by_part import MacsByPart
from tcae_diffusers.models.frozen_network import without_pretrained_weights
from tcae_diffusers.objectives.perceptual import LPIPSLoss
from tcae_diffusers.trainer.fit import Hooks, take_step
from tcae_diffusers.trainer.image_batches import image_loader, step_indexed_loader
from tcae_diffusers.trainer.progress import TrainingProgress
from tcae_diffusers.training import bench, count_steps, finetune_decoder, step_cost, train_dit, train_tcae
from tcae_diffusers.training.bench_arguments import BenchArguments
from tcae_diffusers.training.benchmarks import training_cost
from tcae_diffusers.training.dit_arguments import DiTArguments

from ..latent_commands import CLASSES, SMALL_DIT, TOKENIZER, calibrated, home, reset_accelerate, with_tokens
from ..tokenizer_commands import DECODER_OPTIONS, OPTIONS, TINY, trained_tokenizer, with_effect

ROOT = Path(__file__).parents[2]


def words(options):
    """A command line; lists are several words, and an option of `None` is left out."""
    for name, value in options.items():
        if value is not None and value != []:
            values = value if isinstance(value, list) else [value]
            yield from (f"--{name}", *map(str, values))


@pytest.fixture
def real_step(tmp_path):
    """
    `measure(script, type of arguments, options)`: MACs per image of a step of a training command on the CPU, from
    loaded batch to new weights, its arguments and its batch. Counted as PyTorch counts, in one sum, over the last
    step without an entry in the log, or as the mean over `steps`.
    """

    def measure(script, arguments_type, options, steps=None):
        options = {"train_data": home() / "images", "output_dir": tmp_path / "run", **options}
        reset_accelerate()
        arguments = parse_arguments(arguments_type, list(words(options)))
        training = script.start(arguments)
        training.side.model.train()
        run = training.run
        if script is train_dit:
            hooks, sides = Hooks(training.save), [training.side]
            loader = step_indexed_loader(
                training.cache, training.cache.bucket_of, LatentCache.collate, arguments, run.accelerator, 0
            )
        else:
            hooks, sides = training.hooks(), training.sides
            loader = image_loader(training.dataset, arguments, run.accelerator, 0)
        batch = next(iter(loader))
        progress = TrainingProgress(run.accelerator, "test", 10, 0, run.total_batch, 10)
        steps = steps or [count_steps.ordinary_step(range(arguments.max_train_steps), arguments)]
        with FlopCounter() as counter:
            for step in steps:
                take_step(run, itertools.repeat(batch), sides, training.backward, hooks, progress, step)
        images = len(next(iter(batch.values()))) * arguments.gradient_accumulation_steps
        return counter.get_total_flops() / 2 / images / len(steps), arguments, batch

    yield measure
    reset_accelerate()


# Wide enough for Muon.
WIDE = {"autoencoder_overrides": json.dumps({**TINY, "hidden_size": 64})}
TOKENIZERS = {
    "iBOT": {},
    "local crops of the size of global ones": {"ssl_local_crop_size": 16, "ssl_global_crop_size": 16},
    "global crops of their own size": {"ssl_global_crop_size": 8, "ssl_local_crop_size": 8, "resolution": 24},
    "without self-supervision": {"ssl": "none", "ssl_drop_path": 0},
    "masked autoencoding": {"ssl": "mae", "ssl_drop_path": 0},
    "EfficientNet and PatchGAN": {
        "perceptual": "efficientnet-lite0",
        "discriminator": "patchgan",
        "discriminator_layers": 1,
        "discriminator_channels": 8,
        "adversarial_start_step": 0,
    },
    "EfficientNet-Lite1": {"perceptual": "efficientnet-lite1", "ssl": "none"},
    "latents aligned with a network": {"latent_alignment": "efficientnet-lite0"},
    "latents with noise and without their last channels": {"latent_denoising": 3, "latent_min_channels": 1},
    "Muon": {"optimizer": "muon", **WIDE},
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_parts_of_a_tokenizer_step_sum_to_a_real_step(name, real_step):
    options = {**with_effect(OPTIONS, TOKENIZERS[name]), "max_train_steps": 6, **TOKENIZERS[name]}
    measured, arguments, batch = real_step(train_tcae, train_tcae.TokenizerArguments, options)
    cost = count_steps.tokenizer_step_cost(arguments, batch)
    assert cost.total == pytest.approx(measured, rel=1e-6)
    parts = {step_cost.VIEWS, step_cost.DECODER}
    if name in ("iBOT", "Muon", "EfficientNet and PatchGAN"):
        parts |= {step_cost.LOCAL_CROPS, step_cost.HEAD, step_cost.TEACHER}
    if name.startswith("EfficientNet"):
        parts.add(step_cost.PERCEPTUAL)
    if name == "EfficientNet and PatchGAN":
        parts.add(step_cost.DISCRIMINATOR)
    if name == "Muon":
        parts.add(step_cost.OPTIMIZER)
    aligns = name == "latents aligned with a network"
    assert (parts | {step_cost.SHAPING} if aligns else parts) <= cost.forward.keys()
    # Its loss has products of its own, and its weight needs gradients of the latent before the backward pass.
    assert aligns or step_cost.OTHER not in cost.forward
    # What is frozen has no backward pass, a pass of trained matrices twice the products of its forward pass but for
    # the gradient of the images.
    assert step_cost.TEACHER not in cost.backward
    assert 1.8 < cost.backward[step_cost.DECODER] / cost.forward[step_cost.DECODER] <= (4 if aligns else 2)
    assert 1.5 < cost.backward[step_cost.VIEWS] / cost.forward[step_cost.VIEWS] <= 2


WITHOUT_METHOD = {**with_effect(OPTIONS, {"ssl": "none"}), "ssl": "none", "max_train_steps": 6}
ADVERSARY = {"discriminator": "patchgan", "discriminator_layers": 1, "discriminator_channels": 8}


@pytest.mark.parametrize(
    "options",
    [
        {"latent_equivariance": 0.7, "latent_equivariance_min_scale": 0.5},
        {**ADVERSARY, "discriminator_r1_weight": 1, "discriminator_r1_interval": 3, "adversarial_start_step": 2},
    ],
)
def test_steps_that_differ_count_as_often_as_they_occur(options, real_step, monkeypatch):
    begin = options.get("adversarial_start_step", 0)
    options = {**WITHOUT_METHOD, "log_steps": 100, **options}
    measured, arguments, batch = real_step(
        train_tcae, train_tcae.TokenizerArguments, options, steps=list(range(begin, 6))
    )
    assert count_steps.tokenizer_step_cost(arguments, batch).total == pytest.approx(measured, rel=1e-6)
    if begin:
        # A whole run has steps without the discriminator, too.
        measured, arguments, batch = real_step(
            train_tcae, train_tcae.TokenizerArguments, options, steps=list(range(6))
        )
        cost = count_steps.tokenizer_step_cost(arguments, batch, of_whole_run=True)
        assert cost.total == pytest.approx(measured, rel=1e-6)
        assert cost.total < 0.99 * count_steps.tokenizer_step_cost(arguments, batch).total
    monkeypatch.setattr(count_steps, "kinds_of_steps", lambda training, of_whole_run: {4: 1.0})
    assert count_steps.tokenizer_step_cost(arguments, batch).total != pytest.approx(measured, rel=1e-3)


@pytest.mark.parametrize(
    "options", [ADVERSARY, {"latent_alignment": "efficientnet-lite0"}, {"optimizer": "muon", **WIDE}]
)
def test_accumulated_batches_cost_what_weighing_all_of_them_takes(options, real_step):
    """An adaptive weight of several batches costs one more forward pass of each; Muon's step is that of all."""
    options = {**WITHOUT_METHOD, "gradient_accumulation_steps": 2, **options}
    measured, arguments, batch = real_step(train_tcae, train_tcae.TokenizerArguments, options)
    assert count_steps.tokenizer_step_cost(arguments, batch).total == pytest.approx(measured, rel=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {"discriminator": "patchgan"},
        {"discriminator": "efficientnet-lite0"},
        {"discriminator": "none"},
        {"discriminator": "none", "new_decoder": json.dumps({"decoder_hidden_size": 16})},
    ],
)
def test_parts_of_a_decoder_step_sum_to_a_real_step(options, real_step):
    options = {"autoencoder": trained_tokenizer(), "discriminator_r1_weight": 0, **options}
    if options["discriminator"] != "patchgan":
        options |= {"discriminator_layers": None, "discriminator_channels": None}
    options = {**with_effect(DECODER_OPTIONS, options), **options}
    measured, arguments, batch = real_step(finetune_decoder, finetune_decoder.DecoderArguments, options)
    cost = count_steps.decoder_step_cost(arguments, batch)
    assert cost.total == pytest.approx(measured, rel=1e-6)
    assert step_cost.VIEWS not in cost.backward and step_cost.OTHER not in cost.forward
    assert (step_cost.DISCRIMINATOR in cost.forward) == (options["discriminator"] != "none")


def test_parts_of_nested_and_repeated_calls_are_told_apart():
    outer = torch.nn.Sequential(torch.nn.Linear(4, 8, bias=False), torch.nn.Linear(8, 2, bias=False))
    images = torch.ones(3, 4, requires_grad=True)
    macs = MacsByPart()
    macs.watch(outer, "outer")
    macs.watch(outer[1], lambda x: f"inner of {len(x)}")
    with macs:
        loss = outer(images).sum() + outer[1](torch.ones(5, 8)).sum()
        with torch.no_grad(), macs.part("frozen"):
            torch.ones(2, 3) @ torch.ones(3, 2)
        loss.backward()
        torch.ones(7, 3) @ torch.ones(3, 1)
    inner = 3 * 8 * 2
    wanted = {"outer": 3 * 4 * 8, "inner of 3": inner, "inner of 5": 5 * 8 * 2}
    assert macs.forward == {**wanted, "frozen": 12, "other": 21}
    # Gradients of weights and inputs; the five rows need none of their input.
    assert macs.backward == {"outer": 2 * 3 * 4 * 8, "inner of 3": 2 * inner, "inner of 5": 5 * 8 * 2}


def test_weights_are_left_out_only_where_it_is_said():
    with without_pretrained_weights(), torch.device("meta"):
        assert LPIPSLoss("vgg").name == "lpips-vgg"
    with pytest.raises(FileNotFoundError, match="no file nowhere"):
        LPIPSLoss("vgg", "nowhere")


def test_every_imagenet_preset_is_counted():
    folder = ROOT / "training" / "configs"
    files = {file.stem for pattern in ("*imagenet*", "tc_ae_*") for file in folder.glob(f"{pattern}.yaml")}
    assert files == set(training_cost.PRESETS)


@pytest.fixture(scope="module")
def paper_cost():
    return training_cost.preset_cost("tc_ae_f32c128_imagenet256")


def test_the_paper_preset_costs_what_its_parts_are_known_to_cost(paper_cost):
    """164 GMAC for encoder and decoder; teacher and student see two more views, and six of a seventh of the area."""
    step = paper_cost.step
    forward = {part: macs / 1e9 for part, macs in step.forward.items()}
    encoder = forward[step_cost.VIEWS] / 3
    assert encoder + forward[step_cost.DECODER] == pytest.approx(164, rel=0.01)
    assert forward[step_cost.TEACHER] == pytest.approx(2 * encoder, rel=0.02)
    assert 0.8 < forward[step_cost.LOCAL_CROPS] / (6 * (96 / 256) ** 2 * encoder) < 1
    # VGG16 without its classifier on 256x256 pixels is 20.0 GMAC, of sample and of target; one of them has a gradient.
    assert forward[step_cost.PERCEPTUAL] == pytest.approx(2 * 20.0, rel=0.02)
    assert step.backward[step_cost.PERCEPTUAL] == pytest.approx(20.0e9, rel=0.02)


def test_rates_and_days_follow_from_the_cost(paper_cost, monkeypatch):
    monkeypatch.setattr(training_cost, "loader_rate", lambda transform: 10.0)
    cost = dataclasses.replace(paper_cost, step=step_cost.StepCost({"decoder": 100e9}, {"decoder": 150e9}))
    cells = training_cost.row(cost, BenchArguments(peak_tflops=1000.0, utilisation=0.5, gpus=4))
    # 250 GMAC are 0.5e12 FLOP, and 500e12 a second are used: 1000 images/s a GPU.
    assert cells == {
        "decoder": "100 + 150",
        "all": "250",
        "images/s on a GPU": "1000",
        "images/s of a loader's core": "10",
        "loader cores for a GPU": "100.0",
        "steps x batch": "100000 x 512",
        "days on 4 GPUs": "0.15",
    }


TRANSFORMERS = {
    "velocity": {},
    "clean latent": {"flow_prediction": "sample", "transformer": "tc-dit"},
    "noise": {"objective": "epsilon"},
    "REPA": {"repa_weight": 0.5, "repa_projector_width": 24},
    "iREPA": {
        "repa_weight": 0.5,
        "repa_projector": "conv",
        "repa_spatial_normalization": 0.6,
        "transformer": "tc-dit",
    },
    "Muon": {"optimizer": "muon", "attention_head_dim": 32, "gradient_accumulation_steps": 2},
}


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_parts_of_a_transformer_step_sum_to_a_real_step(name, real_step):
    tokenizer, _ = calibrated()
    sources = {"train_data": None, "latents": with_tokens(), "tokenizer": tokenizer}
    options = {**SMALL_DIT, **sources, **TRANSFORMERS[name]}
    measured, arguments, _ = real_step(train_dit, train_dit.DiTArguments, options)
    cost = count_steps.transformer_step_cost(arguments, (4, 2, 2), len(CLASSES), (TOKENIZER["hidden_size"], 2, 2))
    assert cost.total == pytest.approx(measured, rel=1e-6)
    assert (step_cost.PROJECTOR in cost.forward) == name.endswith("REPA")
    assert (step_cost.OPTIMIZER in cost.forward) == (name == "Muon")
    assert step_cost.OTHER not in cost.forward


@pytest.mark.parametrize(
    ("options", "macs"),
    [
        # On each of 16 tokens of width 384: three matrices, or one of 3x3 positions.
        ({}, 16 * (384 * 2048 + 2048 * 2048 + 2048 * 768)),
        ({"repa_projector": "conv"}, 16 * 9 * 384 * 768),
    ],
)
def test_a_transformer_costs_three_of_its_forward_passes_and_so_does_a_projector(options, macs):
    arguments = DiTArguments(
        latents="", tokenizer="", output_dir="", transformer="tc-dit-s", repa_weight=0.5, **options
    )
    cost = count_steps.transformer_step_cost(arguments, (4, 4, 4), 10, (768, 4, 4))
    forward = {part: cost.forward[part] for part in (step_cost.TRANSFORMER, step_cost.PROJECTOR)}
    assert (
        2.9
        < (forward[step_cost.TRANSFORMER] + cost.backward[step_cost.TRANSFORMER]) / forward[step_cost.TRANSFORMER]
        <= 3
    )
    assert forward[step_cost.PROJECTOR] == macs and cost.backward[step_cost.PROJECTOR] == 2 * macs
    plain = dataclasses.replace(arguments, repa_weight=0.0, repa_projector="mlp")
    assert count_steps.transformer_step_cost(plain, (4, 4, 4), 10).forward == {
        step_cost.TRANSFORMER: forward[step_cost.TRANSFORMER]
    }
    with pytest.raises(InputError, match=r"--repa_weight 0\.5 needs tokens to align with"):
        count_steps.transformer_step_cost(arguments, (4, 4, 4), 10)


def test_presets_that_came_after_the_paper_cost_what_they_add():
    """DINOv2's base model on 64 tokens and a class token, and iREPA's convolution on the 64 tokens of a TC-DiT-XL."""
    aligned = training_cost.preset_cost("tc_ae_f32c128_imagenet256_muon_nossl_aligned").step
    tokens, width = 65, 768
    dinov2 = 12 * (12 * tokens * width**2 + 2 * tokens**2 * width) + 64 * 3 * 14**2 * width
    projection, cosines = 64 * 128 * width, 2 * 64**2 * width
    assert aligned.forward[step_cost.SHAPING] == pytest.approx(dinov2 + projection + cosines, rel=1e-3)
    assert aligned.backward[step_cost.SHAPING] < 0.01 * dinov2
    # Muon, on the images of one of 8 GPUs, is a few percent.
    assert 0.005 < aligned.forward[step_cost.OPTIMIZER] / aligned.total < 0.05
    irepa = training_cost.preset_cost("imagenet256_tc_dit_xl_irepa").step
    assert irepa.forward[step_cost.PROJECTOR] == 64 * 9 * 1152 * 768


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--preset", "tc_ae"], "--preset tc_ae is unknown; expected some of tc_ae_f32c128_imagenet256"),
        (["--utilisation", "1.5"], "--utilisation 1.5 must be above 0 and at most 1"),
        (["--peak_tflops", "0"], "--peak_tflops 0.0 must be positive"),
        (["--gpus", "0"], "--gpus 0 must be at least 1"),
        (["--preset", "imagenet256_tc_dit_xl", "--page", "nowhere.md"], "--page nowhere.md is no file"),
    ],
)
def test_bad_options_end_in_one_line(options, message, capsys):
    with pytest.raises(SystemExit) as stop:
        bench.main(["training_cost", *options])
    assert stop.value.code == 2 and message in capsys.readouterr().err


def test_the_page_has_the_table_of_the_code(tmp_path):
    """All of it but what the machine decides, the loaders' rates, and only of the presets that take a second."""
    page = ROOT / "docs" / "model_speed.md"
    written = tmp_path / "page.md"
    written.write_text(page.read_text())
    presets = ["tc_ae_f32c128_imagenet256_nossl", "imagenet256_tc_dit_xl", "imagenet256_tc_dit_xl_irepa"]
    assert bench.main(["training_cost", "--preset", *presets, "--page", str(written)]) == 0

    def rows(path):
        lines = path.read_text().partition("<!-- table: training_cost -->")[2].partition("<!-- end")[0].split("\n")
        cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
        header, *rest = cells
        return {cells[0]: dict(zip(header[1:], cells[1:], strict=True)) for cells in rest}

    published, counted = rows(page), rows(written)
    assert set(published) == set(training_cost.PRESETS) and set(counted) == set(presets)
    for name, cells in counted.items():
        for column, text in cells.items():
            if "loader" not in column:
                assert published[name][column] == text, "write it anew: make bench BENCH_ARGS='training_cost --page'"
