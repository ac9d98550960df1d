"""Pictures of samples during DiT training, always from the same noise."""

import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from torchvision.utils import make_grid

from ..pipelines import TCDiTPipeline


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
        self.classes = list(range(min(pipeline.num_classes, max_classes)))

    def log(self, accelerator: Accelerator, ema: EMAModel, step: int) -> None:
        """Draw and log; the transformer is left in eval mode, with its own weights back in place."""
        if not accelerator.is_main_process:
            return
        transformer = self.pipeline.transformer
        parameters = list(transformer.parameters())
        ema.store(parameters)
        ema.copy_to(parameters)
        transformer.eval()
        self.pipeline.set_progress_bar_config(disable=True)
        generators = [
            torch.Generator().manual_seed(self.seed + i) for i in range(len(self.classes) * self.samples_per_class)
        ]
        try:
            images = self.pipeline(
                self.classes,
                num_images_per_label=self.samples_per_class,
                num_inference_steps=self.num_inference_steps,
                guidance_scale=self.guidance_scale,
                generator=generators,
                output_type="pt",
            ).images
        finally:
            ema.restore(parameters)
        grid = make_grid(images.float().cpu(), nrow=self.samples_per_class, padding=2, pad_value=1.0)
        for tracker in accelerator.trackers:
            if tracker.name == "tensorboard":
                tracker.writer.add_image("samples/a row per class", grid, step)
