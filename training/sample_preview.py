"""Pictures of samples during DiT training, always from the same noise."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from torchvision.utils import make_grid

from tcae_diffusers.pipelines import TCDiTPipeline
from tcae_diffusers.trainer.averages import averaged_weights
from tcae_diffusers.trainer.trackers import log_picture


@contextmanager
def averaged_pipeline(pipeline: TCDiTPipeline, average: EMAModel) -> Iterator[TCDiTPipeline]:
    """The pipeline with averaged weights inside the block, see [`averaged_weights`]. All ranks must enter."""
    own = pipeline.transformer
    with averaged_weights(own, average) as transformer:
        pipeline.transformer = transformer
        try:
            yield pipeline
        finally:
            pipeline.transformer = own


class SamplePreview:
    """
    Draws a few images per class with the averaged weights and logs them as one grid, a row per class.

    Args:
        pipeline ([`TCDiTPipeline`]): Holds the transformer that is trained.
        samples_per_class (`int`): Columns of the grid.
        num_inference_steps (`int`): Denoising steps.
        guidance_scale (`float`): Guidance scale.
        seed (`int`): Of the noise.
        max_classes (`int`, defaults to 10): Rows; the first classes are shown.
    """

    def __init__(
        self,
        pipeline: TCDiTPipeline,
        samples_per_class: int,
        num_inference_steps: int,
        guidance_scale: float,
        seed: int,
        max_classes: int = 10,
    ):
        self.pipeline = pipeline
        self.samples_per_class = samples_per_class
        self.num_inference_steps = num_inference_steps
        self.guidance_scale = guidance_scale
        self.seed = seed
        self.classes = sorted(pipeline.id2label)[:max_classes]

    def draw(self) -> torch.Tensor:
        """The images `(classes * samples_per_class, 3, H, W)` in [0, 1], class by class."""
        self.pipeline.set_progress_bar_config(disable=True)
        generators = [
            torch.Generator().manual_seed(self.seed + i) for i in range(len(self.classes) * self.samples_per_class)
        ]
        images = self.pipeline(
            self.classes,
            num_images_per_label=self.samples_per_class,
            num_inference_steps=self.num_inference_steps,
            guidance_scale=self.guidance_scale,
            generator=generators,
            output_type="pt",
            return_dict=False,
        )[0]
        return images.float().cpu()

    def log(self, accelerator: Accelerator, ema: EMAModel, step: int) -> None:
        """Draw with the averaged weights and log; the transformer is left as it was. All ranks must call this."""
        with averaged_pipeline(self.pipeline, ema):
            if not accelerator.is_main_process:
                return
            images = self.draw()
        grid = make_grid(images, nrow=self.samples_per_class, padding=2, pad_value=1.0)
        log_picture(accelerator, "samples/a row per class", grid, step)
