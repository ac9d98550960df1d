"""Small models and image folders that the tests of the evaluation share."""

import numpy as np
import pytest
import torch
from PIL import Image

TINY_AUTOENCODER = {
    "sample_size": 32,
    "spatial_compression_ratio": 8,
    "latent_channels": 4,
    "patch_size": 2,
    "hidden_size": 32,
    "num_attention_heads": 2,
    "encoder_num_layers": (1, 1),
}


def evaluate(*arguments) -> int:
    """The exit code of `python -m tcae_diffusers.evaluation ...`."""
    from tcae_diffusers.evaluation.__main__ import main

    try:
        return main([str(argument) for argument in arguments])
    except SystemExit as ended:
        return ended.code


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_autoencoder():
    from tcae_diffusers import AutoencoderTC

    torch.manual_seed(0)
    return AutoencoderTC(**TINY_AUTOENCODER).eval()


@pytest.fixture(scope="session")
def save_pipeline(tiny_autoencoder, tmp_path_factory):
    """`save_pipeline(class names)` writes a TCDiTPipeline with random weights and returns its folder."""
    from diffusers import DiTTransformer2DModel, FlowMatchEulerDiscreteScheduler

    from tcae_diffusers.pipelines.pipeline_tc_dit import TCDiTPipeline

    def save(class_names, num_classes=None, scheduler=None):
        torch.manual_seed(1)
        transformer = DiTTransformer2DModel(
            num_attention_heads=2,
            attention_head_dim=8,
            in_channels=4,
            out_channels=4,
            num_layers=1,
            sample_size=4,
            patch_size=1,
            num_embeds_ada_norm=num_classes or len(class_names),
            norm_num_groups=4,
        )
        pipeline = TCDiTPipeline(
            vae=tiny_autoencoder,
            transformer=transformer,
            scheduler=scheduler or FlowMatchEulerDiscreteScheduler(),
            id2label=dict(enumerate(class_names)),
        )
        folder = tmp_path_factory.mktemp("pipeline")
        pipeline.save_pretrained(folder)
        return folder

    return save


@pytest.fixture(scope="session")
def pipeline_folder(save_pipeline):
    """A saved TCDiTPipeline with two classes and random weights."""
    return save_pipeline(["circles", "squares"])


def draw_images(seed: int, count: int, size: int = 32) -> np.ndarray:
    """Coloured rectangles on noise: uint8 `(count, size, size, 3)`, different for every seed."""
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 60, (count, size, size, 3)).astype(np.uint8)
    for image in images:
        top, left = generator.integers(0, size // 2, 2)
        image[top : top + size // 2, left : left + size // 2] = generator.integers(60, 255, 3)
    return images


def write_folder(root, images: np.ndarray, classes=("circles", "squares")):
    """`root/class/0000.png`, classes in turn."""
    for index, pixels in enumerate(images):
        folder = root / classes[index % len(classes)]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{index:04d}.png")
    return root


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("images"), draw_images(0, 30))


@pytest.fixture(scope="session")
def other_folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("others"), draw_images(1, 24))


@pytest.fixture(scope="session")
def make_image_folder():
    """`make_image_folder(root, seed, count)` writes images of two classes below `root`."""
    return lambda root, seed, count: write_folder(root, draw_images(seed, count))
