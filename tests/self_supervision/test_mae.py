"""`--ssl mae`: hidden pixels are regressed from what is visible, through the seam alone."""

import json

import pytest
import torch

from tcae_diffusers.data.images.pixel_range import to_signed
from tcae_diffusers.data.sample_randomness import slot_generators
from tcae_diffusers.errors import InputError

from ..latent_commands import assert_same_training_state, weights
from ..tokenizer_commands import checkpoint, train, train_interrupted
from ..training.test_train_tcae import first_batch, losses_of, started

__all__ = ["started"]

OPTIONS = {"ssl": "mae", "ssl_drop_path": 0}


def prepared(run):
    batch = first_batch(run)
    return batch, run.method.prepare(batch, slot_generators(0, 0, 0, len(batch["pixel_values"])), torch.device("cpu"))


def test_hidden_patches_are_hidden_and_the_share_is_that_of_the_options(started):
    run = started(**OPTIONS, ssl_options=json.dumps({"mask_ratio": 0.5}))
    batch, views = prepared(run)
    # 16 pixels in groups of 4: half of 16 tokens of each image.
    assert (views.on_tokens.sum(1) == 8).all() and views.targets.shape == (4, 16, 3 * 4 * 4)
    pixels = views.on_patches.repeat_interleave(2, 1).repeat_interleave(2, 2).unsqueeze(1)
    images = to_signed(batch["pixel_values"])
    run.side.model.eval()
    with torch.no_grad():
        first = run.side.model(images, views).method["pixels"]
        hidden = run.side.model(torch.where(pixels, -images, images), views).method["pixels"]
        visible = run.side.model(torch.where(pixels, images, -images), views).method["pixels"]
    assert torch.equal(first, hidden) and not torch.allclose(first, visible)


def test_a_token_is_always_left_to_see_and_a_single_one_is_refused(started):
    run = started(**OPTIONS, ssl_options=json.dumps({"mask_ratio": 0.99}))
    batch, views = prepared(run)
    assert (views.on_tokens.sum(1) == 15).all()
    small = {**batch, "pixel_values": batch["pixel_values"][..., :4, :4]}
    with pytest.raises(InputError, match="images of 4x4 have a single one"):
        run.method.prepare(small, [torch.Generator() for _ in range(4)], torch.device("cpu"))


def test_the_loss_is_that_of_the_hidden_pixels_alone_and_zero_for_the_right_answer(started):
    run = started(**OPTIONS)
    batch, views = prepared(run)
    output = run.side.model(to_signed(batch["pixel_values"]), views)
    output.method["pixels"] = torch.where(views.on_tokens[..., None], views.targets, 1e6)
    loss, metrics = run.method.loss(output, views, 0, True)
    assert loss == 0 and metrics["train/loss_mae"] is loss
    # Normalised targets have unit variance, so predicting their mean costs about one.
    output.method["pixels"] = torch.zeros_like(views.targets)
    mean, _ = run.method.loss(output, views, 0, True)
    varied = views.targets.square().mean(-1) > 0.5
    torch.testing.assert_close(mean, (varied * views.on_tokens).sum() / views.on_tokens.sum(), rtol=0.1, atol=0)


def test_every_part_learns_and_nothing_of_it_is_saved_with_the_model(started):
    run = started(**OPTIONS)
    loss, metrics = losses_of(run, first_batch(run), 0)
    loss.backward()
    assert [name for name, parameter in run.student.named_parameters() if parameter.grad is None] == []
    expected = metrics["train/loss_l1"] + metrics["train/loss_mse"] + metrics["train/loss_mae"]
    torch.testing.assert_close(loss, expected)


def test_a_run_resumes_as_if_nothing_had_happened(tmp_path):
    whole = train(tmp_path / "whole", **OPTIONS)
    run = train_interrupted(tmp_path / "run", **OPTIONS)
    assert_same_training_state(checkpoint(run), checkpoint(whole))
    assert all(not name.startswith("parts.") for name in weights(whole / "model"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"ssl_options": '{"mask_rato": 0.5}'}, "did you mean mask_ratio?"),
        ({"ssl_options": '{"mask_ratio": 1.5}'}, "mask_ratio 1.5 must be above 0 and below 1"),
        ({"ssl_options": '{"mask_ratio": "much"}'}, "is 'much', expected float"),
        ({"ssl_options": '{"decoder_heads": 5}'}, "must be 1 or more and divide the tokens' 32 channels"),
        ({"ssl_options": '{"decoder_heads": 0}'}, "decoder_heads 0 must be 1 or more"),
        ({"ssl_mask_ratio_max": 0.9}, "--ssl_mask_ratio_max 0.9 has no effect without --ssl dinov2 or ibot"),
        (
            {"ssl_features": "first_stage"},
            "--ssl_features first_stage has no effect without --ssl dino or dinov2 or ibot",
        ),
        ({"ssl": "ibot", "ssl_options": '{"mask_ratio": 0.5}'}, "ibot has no option 'mask_ratio'"),
        ({"ssl": "simclr"}, "choose from dino, dinov2, ibot, mae, none"),
    ],
)
def test_options_that_make_no_sense_are_named(tmp_path, capsys, options, words):
    with pytest.raises(SystemExit) as stopped:
        train(tmp_path / "run", **{**OPTIONS, **options})
    # Whether argparse quotes choices depends on the release of Python.
    assert stopped.value.code == 2 and words.replace("'", "") in capsys.readouterr().err.replace("'", "")
