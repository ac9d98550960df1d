"""How do decoders of the same latents compare on generated latents?"""

from __future__ import annotations

import torch
from diffusers import ModelMixin

from tcae_diffusers.errors import InputError
from tcae_diffusers.metrics.reference import open_reference_content
from tcae_diffusers.models.adapters import load_autoencoder
from tcae_diffusers.models.fingerprint import TokenizerFingerprint

from ..arguments.decoders import DecodersArguments
from ..arguments.generation import GenerationArguments
from ..arguments.groups import FeatureCacheArguments, HeldoutArguments, MachineArguments
from ..arguments.named_paths import parse_named_paths
from ..pictures.drawing import class_names_of, generate_with_decoders, load_latent_pipeline
from ..pictures.guiders import set_guider
from ..pictures.other_transformers import add_guidance_transformer
from ..results.kinds.generation import GenerationResult
from . import generation
from .generate import begin_store, drawn_settings, samples_result
from .heldout_measures import heldout_measures

# What the set of the pipeline's own decoder is called.
OWN = "pipeline"


def run(arguments: DecodersArguments) -> GenerationResult:
    """
    Draws and decodes what is missing, and measures it.

    Raises:
        InputError: If the pipeline, an autoencoder or the reference cannot be used, or the latents of an autoencoder
            are not those of the pipeline's.
    """
    # What cannot be measured should not be found out after hours of drawing.
    open_reference_content(arguments.reference, network=arguments.feature_network("cpu"))
    heldout_measures(arguments, arguments.reference)
    folders = draw_samples(arguments)
    measuring = GenerationArguments(
        samples=[f"{name}={folder}" for name, folder in folders.items()],
        paired=True,
        reference=arguments.reference,
        seed=arguments.seed,
        output=arguments.output,
        **arguments.values_of(HeldoutArguments, FeatureCacheArguments, MachineArguments),
    )
    return generation.run(measuring)


def draw_samples(arguments: DecodersArguments) -> dict[str, str]:
    """The set of each decoder, drawn and complete: its folder by its name."""
    state = arguments.process_state()
    pipeline = load_latent_pipeline(arguments.pipeline, arguments.chosen_device(), torch.float32)
    if arguments.guidance_transformer is not None:
        add_guidance_transformer(pipeline, arguments.guidance_transformer)
    set_guider(pipeline, arguments)
    class_names = class_names_of(pipeline)
    decoders = {OWN: pipeline.vae, **load_decoders(arguments, pipeline.vae)}
    drawings = {name: arguments.drawing(name) for name in decoders}
    stores = {
        name: begin_store(drawing, class_names, drawn_settings(drawing, pipeline, decoders[name]))
        for name, drawing in drawings.items()
    }
    unfinished = [name for name, store in stores.items() if not store.is_complete]
    if unfinished:
        sets = [(decoders[name], stores[name]) for name in unfinished]
        sampling = drawings[OWN].sampling(pipeline.guider is not None)
        generate_with_decoders(pipeline, sets, arguments.seed, arguments.batch_size, **sampling)
    if state.is_main_process:
        for name in unfinished:
            drawing = drawings[name]
            samples_result(drawing, stores[name], class_names, is_new=True).save(drawing.output)
    state.wait_for_everyone()
    return {name: str(drawing.output) for name, drawing in drawings.items()}


def load_decoders(arguments: DecodersArguments, vae: ModelMixin) -> dict[str, ModelMixin]:
    """
    The autoencoders of `--decoders` by name.

    Raises:
        InputError: If one cannot be loaded, or its latents are not those of `vae`.
    """
    paths = parse_named_paths(arguments.decoders)
    if OWN in paths:
        raise InputError(f"--decoders {OWN}={paths[OWN]}: {OWN!r} is the pipeline's own decoder; choose another name")
    expected, loaded = TokenizerFingerprint.of(vae), {}
    for name, path in paths.items():
        loaded[name] = load_autoencoder(path, arguments.chosen_device(), torch.float32)
        difference = expected.difference_of_latents(TokenizerFingerprint.of(loaded[name]))
        if difference:
            raise InputError(
                f"--decoders {path} cannot decode the latents of {arguments.pipeline}: it has {difference}; pass one "
                "that finetune_decoder made of the autoencoder in the pipeline"
            )
    return loaded
