"""What a trained DiT draws is a function of weights and seeds, whatever the batch; stock pipelines run it too."""

import functools
import json

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DiffusionPipeline,
    DiTPipeline,
    DiTTransformer2DModel,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
)
from PIL import Image

from tcae_diffusers import AutoencoderTC, TCDiTPipeline, TCDiTTransformer2DModel
from tcae_diffusers.evaluation.__main__ import main as evaluate

from ..latent_commands import CLASSES, fork_ranks, home, reset_accelerate, train

RUNS = {
    "dit-flow": {"timestep_shift_base": 4},
    "tc-dit-flow": {"transformer": "tc-dit", "direction_weight": 1.0, "timestep_distribution": "uniform"},
    "dit-epsilon": {"objective": "epsilon"},
    "tc-dit-v": {"transformer": "tc-dit", "objective": "v_prediction", "min_snr_gamma": 5},
}
STOCK = ["dit-epsilon", "tc-dit-v"]


@functools.cache
def pipeline_folder(name):
    # Not too few steps: adaLN-zero starts with an output of zero, which would hide what depends on what.
    return train(home() / "seeds" / name, **RUNS[name], max_train_steps=30) / "pipeline"


def pictures(folder):
    return {str(file.relative_to(folder)): np.asarray(Image.open(file)) for file in sorted(folder.rglob("*.png"))}


@pytest.mark.parametrize("name", RUNS)
def test_batch_1_draws_the_images_of_batch_8(tmp_path, name):
    arguments = ["generate", "--pipeline", str(pipeline_folder(name)), "--num_images", "9", "--device", "cpu"]
    arguments += ["--num_inference_steps", "4", "--guidance_scale", "2"]
    drawn = {}
    for batch_size in (1, 8):
        reset_accelerate()
        output = tmp_path / f"batch_{batch_size}"
        assert evaluate([*arguments, "--output", str(output), "--batch_size", str(batch_size)]) == 0
        drawn[batch_size] = pictures(output)
    reset_accelerate()
    assert len(drawn[1]) == 9 and drawn[1].keys() == drawn[8].keys()
    assert {path.split("/")[0] for path in drawn[1]} == set(CLASSES)
    for path, pixels in drawn[1].items():
        # Batched matrix products round differently, which may move a pixel by one level.
        assert np.abs(pixels.astype(int) - drawn[8][path]).max() <= 1
    first, second, *_ = drawn[1].values()
    assert np.abs(first.astype(int) - second).max() > 1


@pytest.mark.parametrize("name", RUNS)
def test_the_saved_pipeline_has_the_scheduler_and_the_names_that_fit(name):
    folder = pipeline_folder(name)
    pipeline = DiffusionPipeline.from_pretrained(folder)
    assert isinstance(pipeline, TCDiTPipeline)
    assert pipeline.id2label == dict(enumerate(CLASSES)) and pipeline.num_classes == 3
    if name.endswith("flow"):
        assert isinstance(pipeline.scheduler, FlowMatchEulerDiscreteScheduler)
        # Latents of 4 x 2 x 2 values over a base of 4: shifted by 2.
        assert pipeline.scheduler.config.shift == (2.0 if name == "dit-flow" else 1.0)
        assert pipeline.null_class_id == 3
    else:
        assert isinstance(pipeline.scheduler, DDIMScheduler) and not pipeline.scheduler.config.clip_sample
        expected = {"dit-epsilon": "epsilon", "tc-dit-v": "v_prediction"}[name]
        assert pipeline.scheduler.config.prediction_type == pipeline.config.prediction_type == expected
        assert pipeline.null_class_id == 1000
    with pytest.raises(ValueError, match=r"Class id (3|500) is not in id2label"):
        pipeline([500 if pipeline.null_class_id == 3 else 3])


@pytest.mark.parametrize("name", STOCK)
@pytest.mark.parametrize("solver", [DDIMScheduler, DPMSolverMultistepScheduler, DDPMScheduler])
def test_stock_dit_pipeline_draws_what_ours_draws(name, solver):
    """With guidance, so that the stock pipeline asks for its null class 1000 of a model with three classes."""
    folder = pipeline_folder(name)
    stock = DiTPipeline.from_pretrained(folder, vae=AutoencoderTC.from_pretrained(folder / "vae"))
    images = []
    for pipeline in (stock, TCDiTPipeline.from_pretrained(folder)):
        pipeline.set_progress_bar_config(disable=True)
        pipeline.scheduler = solver.from_config(pipeline.scheduler.config)
        generator = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
        output = pipeline([0, 2], generator=generator, output_type="np", num_inference_steps=6, guidance_scale=3.0)
        images.append(output.images)
    assert images[0].shape == (2, 16, 16, 3) and np.isfinite(images[0]).all()
    if solver is not DDPMScheduler:  # whose noise the stock pipeline draws from the global generator
        np.testing.assert_allclose(images[0], images[1], atol=1e-4)
    assert type(stock.transformer) is {"dit": DiTTransformer2DModel, "tc-": TCDiTTransformer2DModel}[name[:3]]


def test_the_null_class_of_the_config_is_the_one_that_dropped_labels_train():
    folder = train(home() / "seeds" / "unconditional", transformer="tc-dit", objective="epsilon", label_dropout=0.99)
    config = json.loads((folder / "pipeline" / "transformer" / "config.json").read_text())
    assert (config["num_classes"], config["null_class_id"]) == (3, 1000)
    trained = TCDiTTransformer2DModel.from_pretrained(folder / "pipeline" / "transformer")
    assert trained.class_embed.num_embeddings == 4
    torch.manual_seed(0)
    start = TCDiTTransformer2DModel.from_config(trained.config)
    moved = (trained.class_embed.weight - start.class_embed.weight).abs().amax(1)
    assert moved[3] > 0


def test_the_modern_transformer_draws_other_sizes_than_it_was_trained_on():
    pipeline = TCDiTPipeline.from_pretrained(pipeline_folder("tc-dit-flow"))
    pipeline.set_progress_bar_config(disable=True)
    wide = pipeline([0, 1], height=16, width=40, num_inference_steps=2, output_type="np").images
    assert wide.shape == (2, 16, 40, 3) and np.isfinite(wide).all()


def test_two_ranks_draw_the_images_of_one(tmp_path):
    arguments = ["generate", "--pipeline", str(pipeline_folder("tc-dit-flow")), "--num_images", "7", "--device", "cpu"]
    arguments += ["--num_inference_steps", "3", "--batch_size", "2"]
    reset_accelerate()
    assert evaluate([*arguments, "--output", str(tmp_path / "one")]) == 0
    reset_accelerate()
    assert fork_ranks(lambda rank: evaluate([*arguments, "--output", str(tmp_path / "two")])) == [0, 0]
    one, two = pictures(tmp_path / "one"), pictures(tmp_path / "two")
    assert len(one) == 7 and one.keys() == two.keys()
    assert all(np.abs(pixels.astype(int) - two[path]).max() <= 1 for path, pixels in one.items())
