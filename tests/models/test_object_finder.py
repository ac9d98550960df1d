"""Objects that a segmentation model of transformers finds."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Sam2Model

from tcae_diffusers.errors import InputError
from tcae_diffusers.models.object_finder import ObjectFinder

from ..tiny_segmenter import save_tiny_segmenter


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory):
    return save_tiny_segmenter(tmp_path_factory.mktemp("segmenter"))


@pytest.fixture(scope="module")
def images():
    squares = torch.rand(4, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(squares, scale_factor=8).mul(255).byte()


def test_an_image_has_the_same_object_in_every_batch(segmenter, images):
    finder = ObjectFinder(segmenter, "cpu", 4)
    masks = finder(images[0])
    assert masks.dtype == bool and masks.shape[1:] == (32, 40) and 0 < masks.mean() < 1
    # Of several objects each image draws one.
    finder._pipeline._postprocess_params = {"crops_nms_thresh": 2}
    together = finder.one_of_each(images, range(10, 14))
    assert together.shape == (4, 32, 40) and together.dtype == torch.bool
    alone = [finder.one_of_each(image[None], range(number, number + 1)) for number, image in enumerate(images, 10)]
    torch.testing.assert_close(together, torch.cat(alone))
    for image, found in zip(images, together, strict=True):
        assert any(np.array_equal(found.numpy(), mask) for mask in finder(image))
    assert len(finder(images[0])) > 1
    drawn = [finder.one_of_each(images[:1], range(number, number + 1)) for number in range(8)]
    assert any(not torch.equal(drawn[0], other) for other in drawn[1:])


def test_where_nothing_is_found_the_mask_is_empty(segmenter, images):
    finder = ObjectFinder(segmenter, "cpu", 2)
    finder._pipeline._forward_params = {"pred_iou_thresh": 2.0}
    assert finder(images[0]).shape == (0, 32, 40)
    assert not finder.one_of_each(images[:2], range(2)).any()


def test_weights_that_are_not_there_are_refused(segmenter, tmp_path):
    with pytest.raises(InputError, match=r"cannot load a segmentation model from .*nowhere"):
        ObjectFinder(tmp_path / "nowhere", "cpu", 2)
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in segmenter.iterdir():
        (broken / path.name).write_bytes(path.read_bytes())
    weights = load_file(broken / "model.safetensors")
    del weights["mask_decoder.iou_token.weight"]
    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"lack 1 of its tensors, such as mask_decoder\.iou_token\.weight"):
        ObjectFinder(broken, "cpu", 2)
    weights["mask_decoder.iou_token.weight"] = torch.zeros(1, 7)
    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"broken are not readable by AutoModelForMask"):
        ObjectFinder(broken, "cpu", 2)


def test_half_precision_is_not_computed_in(segmenter, tmp_path):
    half = Sam2Model.from_pretrained(segmenter).half()
    half.save_pretrained(tmp_path)
    for path in segmenter.glob("*processor*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    finder = ObjectFinder(tmp_path, "cpu", 2)
    assert next(finder._pipeline.model.parameters()).dtype == torch.float32
    assert finder.describe()["points"] == 2
