"""Latents that a trained diffusion transformer draws once, by which a decoder is judged while it trains."""

import torch
from accelerate import Accelerator
from diffusers import ModelMixin

from tcae_diffusers.data.distributed import gather_in_rank_order, rank_range
from tcae_diffusers.data.sample_labels import label_sequence
from tcae_diffusers.errors import InputError
from tcae_diffusers.evaluation.pictures.drawing import class_names_of, draw_latents, load_latent_pipeline
from tcae_diffusers.models.adapters import adapt
from tcae_diffusers.models.fingerprint import TokenizerFingerprint
from tcae_diffusers.training.decoder_arguments import DecoderArguments

BATCH_SIZE = 64


def draw_heldout_latents(
    arguments: DecoderArguments, autoencoder: ModelMixin, accelerator: Accelerator
) -> torch.Tensor | None:
    """
    Latents `(--heldout_samples, c, h, w)` as `autoencoder` decodes them, of all classes equally; `None` without
    `--heldout_pipeline`. Latent `i` is that of image `i` of `evaluation generate` with the same seed. Each rank draws
    its range, and all get everything.

    Raises:
        InputError: the pipeline cannot be loaded, or its latents are not those of `autoencoder` or of `--resolution`.
    """
    if arguments.heldout_pipeline is None:
        return None
    option = f"--heldout_pipeline {arguments.heldout_pipeline}"
    pipeline = load_latent_pipeline(arguments.heldout_pipeline, accelerator.device, torch.float32)
    difference = TokenizerFingerprint.of(autoencoder).difference_of_latents(TokenizerFingerprint.of(pipeline.vae))
    if difference:
        raise InputError(
            f"{option} does not draw latents of --autoencoder {arguments.autoencoder}: its own autoencoder has "
            f"{difference}; pass a pipeline that was trained on latents of this one."
        )
    labels = label_sequence([1] * len(class_names_of(pipeline)), arguments.heldout_samples)
    mine = rank_range(len(labels), accelerator.process_index, accelerator.num_processes)
    sampling = {
        "num_inference_steps": arguments.heldout_num_inference_steps,
        "guidance_scale": arguments.heldout_guidance_scale,
    }
    drawn = [
        draw_latents(pipeline, labels, list(mine[start : start + BATCH_SIZE]), arguments.seed, **sampling).cpu()
        for start in range(0, len(mine), BATCH_SIZE)
    ]
    latents = torch.cat([part for parts in gather_in_rank_order(drawn, accelerator.state) for part in parts])
    side = latents.shape[-1] * adapt(autoencoder).spatial_ratio
    if side != arguments.image_size:
        raise InputError(f"{option} draws images of {side} pixels, not of --resolution {arguments.image_size}.")
    scaling, shift = adapt(autoencoder).pipeline_scaling
    return latents / scaling + shift
