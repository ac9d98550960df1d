"""A Fréchet distance of a few samples during DiT training: good for the shape of a curve, not a figure to report."""

from collections.abc import Sequence

import torch
from accelerate import Accelerator, PartialState
from accelerate.logging import get_logger
from diffusers.training_utils import EMAModel

from tcae_diffusers.data.distributed import gather_in_rank_order, rank_range
from tcae_diffusers.data.latents.cache import LatentCache
from tcae_diffusers.data.sample_labels import label_sequence
from tcae_diffusers.evaluation.pictures.drawing import draw
from tcae_diffusers.metrics.feature_cache import default_cache_folder
from tcae_diffusers.metrics.features import FeatureNetwork
from tcae_diffusers.metrics.frechet import frechet_distance
from tcae_diffusers.metrics.names import metric_name
from tcae_diffusers.metrics.reference import open_reference
from tcae_diffusers.models.adapters import adapt
from tcae_diffusers.pipelines import TCDiTPipeline

from .dit_arguments import DiTArguments
from .sample_preview import averaged_pipeline

logger = get_logger(__name__)


class OnlineFrechet:
    """
    Draws a small labelled set with the averaged weights and compares it with all images of a reference.

    Image `i` has the seed that `evaluation generate` gives it, and each rank draws its range, so the curve does not
    depend on ranks or batch size. The distance of few samples is biased upwards: compare points of one curve only.

    Args:
        pipeline ([`TCDiTPipeline`]): Holds the transformer that is trained.
        reference (`str`): Data source or folder, as in `evaluation generation --reference`.
        extractor (`str`): Feature network; any but Inception gives an `FD-<name>`, never an FID.
        num_samples (`int`): How many to draw, at least 8.
        class_counts (sequence of `int`):
            Training images per class: labels are drawn in these proportions. Balanced labels of an unbalanced set
            would be far from a reference that is the set, and the farther the better the classes are known.
        seed (`int`): Of the samples.
        resolution (`int`): Side of the images.
        sampling (`dict`): `num_inference_steps`, `guidance_scale`.
        batch_size (`int`, defaults to 64): Images drawn at once.

    Raises:
        InputError: if the reference or the feature network cannot be opened.
    """

    def __init__(
        self,
        pipeline: TCDiTPipeline,
        reference: str,
        extractor: str,
        num_samples: int,
        class_counts: Sequence[int],
        seed: int,
        resolution: int,
        sampling: dict,
        batch_size: int = 64,
    ):
        state = PartialState()
        self.pipeline, self.seed, self.sampling, self.batch_size = pipeline, seed, sampling, batch_size
        self.network = FeatureNetwork(extractor, device=state.device)
        opened, _ = open_reference(reference, resolution, self.network, cache_folder=default_cache_folder())
        if opened.features is None:
            raise ValueError(f"--gfd_reference {reference} contains statistics only; pass images.")
        self.reference = opened.features
        self.labels = label_sequence(class_counts, num_samples)
        self.name = f"online/{metric_name('FID', self.network.name, num_samples, prefix='g')} of {num_samples} samples"

    def log(self, accelerator: Accelerator, ema: EMAModel, step: int) -> float:
        """Draw, compare and log. All ranks must call this; each gets the distance."""
        state = PartialState()
        mine = rank_range(len(self.labels), state.process_index, state.num_processes)
        features = []
        self.pipeline.set_progress_bar_config(disable=True)
        with averaged_pipeline(self.pipeline, ema):
            for start in range(0, len(mine), self.batch_size):
                indices = list(mine[start : start + self.batch_size])
                images = draw(self.pipeline, self.labels, indices, self.seed, **self.sampling)
                features.append(self.network(torch.from_numpy(images).permute(0, 3, 1, 2))["features"])
        own = torch.cat(features) if features else torch.empty(0, self.reference.shape[1])
        samples = torch.cat(gather_in_rank_order(own, state)).numpy()
        distance = frechet_distance(samples, self.reference)
        accelerator.log({self.name: distance}, step=step)
        logger.info(f"step {step}: {self.name.removeprefix('online/')} {distance:.1f} (a trend, not a result)")
        return distance


def build_online_frechet(arguments: DiTArguments, pipeline: TCDiTPipeline, cache: LatentCache) -> OnlineFrechet | None:
    if not arguments.gfd_steps or arguments.gfd_reference is None:
        return None
    counts = [len(cache)] if arguments.unconditional else cache.labels.bincount(minlength=len(cache.id2label)).tolist()
    return OnlineFrechet(
        pipeline,
        arguments.gfd_reference,
        arguments.gfd_extractor,
        arguments.gfd_samples,
        counts,
        arguments.seed,
        resolution=cache.latent_shape[1] * adapt(pipeline.vae).spatial_ratio,
        sampling={"num_inference_steps": arguments.sample_num_inference_steps, "guidance_scale": 1.0},
    )
