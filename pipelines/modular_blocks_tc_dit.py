# Copyright 2026 The TCAE-Diffusers authors. Licensed under the Apache License, Version 2.0.
"""
Blocks for diffusers' modular pipelines: class-conditional generation as `TCDiTPipeline` does it, step by step, and
encoding and decoding images with any autoencoder of diffusers.

Besides torch and diffusers this file imports only sibling modules, so that an export can include them for people who
do not have this package; see `tcae_diffusers.pipelines.remote_code_export`.
"""

from typing import Any, ClassVar

import torch
from diffusers.guiders import BaseGuidance
from diffusers.image_processor import VaeImageProcessor
from diffusers.models.autoencoders.autoencoder_rae import AutoencoderRAE
from diffusers.models.modeling_utils import ModelMixin
from diffusers.modular_pipelines.modular_pipeline import (
    BlockState,
    LoopSequentialPipelineBlocks,
    ModularPipeline,
    ModularPipelineBlocks,
    PipelineState,
    SequentialPipelineBlocks,
)
from diffusers.modular_pipelines.modular_pipeline_utils import ComponentSpec, ConfigSpec, InputParam, OutputParam
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from .image_processing import as_rgb_of_one_size
from .latents import decode_latents, encode_images, spatial_ratio_of
from .pipeline_tc_dit import TCDiTPipeline

VAE = ComponentSpec("vae", ModelMixin, description="An autoencoder of diffusers for images.")
GENERATING = [
    VAE,
    ComponentSpec("transformer", ModelMixin, description="Class-conditional, as TCDiTPipeline takes it."),
    ComponentSpec("scheduler", SchedulerMixin, description="Of the transformer's prediction type."),
    ComponentSpec("guidance_transformer", ModelMixin, description="Weaker transformer to guide by; may be missing."),
    ComponentSpec("guider", BaseGuidance, description="Of diffusers.guiders; classifier-free guidance if missing."),
]
CONFIGS = [
    ConfigSpec("id2label", None, "Class names by id."),
    ConfigSpec("has_null_class", True, "Whether the transformer was trained without labels too."),
    ConfigSpec("prediction_type", None, "What the transformer predicts; what the scheduler takes if unset."),
]
CLASS_LABELS = InputParam(
    "class_labels", required=True, description="Class ids or names, as TCDiTPipeline takes them."
)
NUM_IMAGES = InputParam("num_images_per_label", type_hint=int, default=1, description="Images of each label.")
HEIGHT = InputParam("height", type_hint=int, description="Height in pixels; the size trained on if unset.")
WIDTH = InputParam("width", type_hint=int, description="Width in pixels; the size trained on if unset.")
LATENTS = InputParam("latents", type_hint=torch.Tensor, description="Starting noise of unit variance.")
GENERATOR = InputParam("generator", description="A torch.Generator, or one for each image.")
INTERVAL = InputParam("guidance_interval", type_hint=tuple, description="Noise levels that are guided; 1 is noise.")
OUTPUT_TYPE = InputParam("output_type", type_hint=str, default="pil", description="'pil', 'np', 'pt' or 'latent'.")
CLASS_IDS = OutputParam("class_ids", type_hint=torch.Tensor, description="Class id of each image.")
OUT_HEIGHT = OutputParam("height", type_hint=int, description="Height in pixels.")
OUT_WIDTH = OutputParam("width", type_hint=int, description="Width in pixels.")
OUT_LATENTS = OutputParam("latents", type_hint=torch.Tensor, description="Latents (B, C, h, w), fp32.")
IMAGES = OutputParam("images", description="As output_type says.")
# What the first step found out, for the later ones.
RESOLVED = [InputParam(name, required=True) for name in ("class_ids", "height", "width")]


def plain_pipeline(components: ModularPipeline) -> TCDiTPipeline:
    """The plain pipeline of a modular one's components, which are shared: what it does is what the blocks do."""
    names = [spec.name for spec in GENERATING]
    parts: dict[str, Any] = {name: getattr(components, name, None) for name in names}
    for name in ("vae", "transformer", "scheduler"):
        if parts[name] is None:
            raise ValueError(
                f"the modular pipeline has no {name}; call load_components() or update_components({name}=...) first."
            )
    configs: dict[str, Any] = {spec.name: components.config.get(spec.name, spec.default) for spec in CONFIGS}
    return TCDiTPipeline(**parts, **configs)


class TCDiTInputStep(ModularPipelineBlocks):
    """Checks what is asked for and finds the class of each image."""

    model_name = "tc-dit"
    description = "Finds the classes that are asked for, and checks sizes and generators."
    expected_components = GENERATING
    expected_configs = CONFIGS
    inputs: ClassVar = [CLASS_LABELS, NUM_IMAGES, HEIGHT, WIDTH, LATENTS, GENERATOR, INTERVAL, OUTPUT_TYPE]
    intermediate_outputs: ClassVar = [CLASS_IDS, OUT_HEIGHT, OUT_WIDTH]

    def __call__(self, components: ModularPipeline, state: PipelineState) -> tuple[ModularPipeline, PipelineState]:
        asked, pipeline = self.get_block_state(state), plain_pipeline(components)
        class_ids, height, width = pipeline.resolve_request(
            asked.class_labels, asked.num_images_per_label, asked.height, asked.width, asked.latents
        )
        pipeline.check_inputs(
            len(class_ids), height, width, asked.guidance_interval, asked.generator, asked.output_type, []
        )
        asked.class_ids = torch.tensor(class_ids, device=components._execution_device)
        asked.height, asked.width = height, width
        self.set_block_state(state, asked)
        return components, state


class TCDiTSetTimestepsStep(ModularPipelineBlocks):
    """Sets the timesteps of the scheduler, or of a copy with another shift."""

    model_name = "tc-dit"
    description = "Sets the timesteps of the scheduler, or of a copy of it with another shift."
    expected_components = GENERATING
    expected_configs = CONFIGS
    inputs: ClassVar = [
        InputParam("num_inference_steps", type_hint=int, default=50, description="Denoising steps."),
        InputParam("timestep_shift", type_hint=float, description="Shift of the noise levels, for flow matching."),
        *RESOLVED,
    ]
    intermediate_outputs: ClassVar = [
        OutputParam("timesteps", type_hint=torch.Tensor, description="Timestep of each step."),
        OutputParam("sampling_scheduler", description="The scheduler of this call."),
    ]

    def __call__(self, components: ModularPipeline, state: PipelineState) -> tuple[ModularPipeline, PipelineState]:
        asked, pipeline = self.get_block_state(state), plain_pipeline(components)
        shape = pipeline.latent_shape(len(asked.class_ids), asked.height, asked.width)
        scheduler = pipeline._scheduler_with_shift(asked.timestep_shift)
        device = components._execution_device
        asked.timesteps = pipeline._set_timesteps(scheduler, asked.num_inference_steps, shape, device)
        asked.sampling_scheduler = scheduler
        self.set_block_state(state, asked)
        return components, state


class TCDiTPrepareLatentsStep(ModularPipelineBlocks):
    """Draws the noise, or scales what is given."""

    model_name = "tc-dit"
    description = "Draws the starting noise, each image's from its own generator."
    expected_components = GENERATING
    expected_configs = CONFIGS
    inputs: ClassVar = [*RESOLVED, GENERATOR, LATENTS]
    intermediate_outputs: ClassVar = [OUT_LATENTS]

    def __call__(self, components: ModularPipeline, state: PipelineState) -> tuple[ModularPipeline, PipelineState]:
        asked, pipeline = self.get_block_state(state), plain_pipeline(components)
        shape = pipeline.latent_shape(len(asked.class_ids), asked.height, asked.width)
        device = components._execution_device
        asked.latents = pipeline.prepare_latents(shape, device, asked.generator, asked.latents)
        self.set_block_state(state, asked)
        return components, state


class TCDiTLoopDenoiser(ModularPipelineBlocks):
    """One step: predictions of the transformer, combined by the guider."""

    model_name = "tc-dit"
    description = "Within the loop: what the guider makes of the predictions of the transformer."
    expected_components = GENERATING
    expected_configs = CONFIGS
    inputs: ClassVar = [InputParam("class_ids", required=True), InputParam("latents", required=True)]
    intermediate_outputs: ClassVar = [
        OutputParam("model_output", type_hint=torch.Tensor, description="Of the last step.")
    ]

    def __call__(
        self, components: ModularPipeline, block_state: BlockState, i: int, t: torch.Tensor
    ) -> tuple[ModularPipeline, BlockState]:
        block_state.model_output = block_state.pipeline._predict_step(
            block_state.sampling_scheduler, block_state.guider, block_state.latents, i, t, block_state.class_ids
        )
        return components, block_state


class TCDiTLoopSchedulerStep(ModularPipelineBlocks):
    """One step: from these latents to less noisy ones."""

    model_name = "tc-dit"
    description = "Within the loop: the step of the scheduler."
    inputs: ClassVar = [
        GENERATOR,
        InputParam("eta", type_hint=float, default=0.0, description="DDIM's eta; other schedulers ignore it."),
    ]
    intermediate_outputs: ClassVar = [OUT_LATENTS]

    def __call__(
        self, components: ModularPipeline, block_state: BlockState, i: int, t: torch.Tensor
    ) -> tuple[ModularPipeline, BlockState]:
        block_state.latents = block_state.pipeline._step(
            block_state.sampling_scheduler,
            block_state.model_output,
            t,
            block_state.latents,
            block_state.generator,
            block_state.eta,
        )
        return components, block_state


class TCDiTDenoiseStep(LoopSequentialPipelineBlocks):
    """The denoising loop; its `sub_blocks` are what happens at every step."""

    model_name = "tc-dit"
    description = "The denoising loop, whose sub_blocks predict and step."
    block_classes: ClassVar = [TCDiTLoopDenoiser, TCDiTLoopSchedulerStep]
    block_names: ClassVar = ["denoiser", "scheduler_step"]
    loop_expected_components = GENERATING
    loop_expected_configs = CONFIGS
    loop_inputs: ClassVar = [
        InputParam("timesteps", required=True),
        InputParam("sampling_scheduler", required=True),
        InputParam("guidance_scale", type_hint=float, description="1 is none; the guider's own, or 4, if unset."),
        INTERVAL,
    ]

    @torch.no_grad()
    def __call__(self, components: ModularPipeline, state: PipelineState) -> tuple[ModularPipeline, PipelineState]:
        block_state = self.get_block_state(state)
        block_state.pipeline = plain_pipeline(components)
        block_state.guider = block_state.pipeline._begin_guidance(
            block_state.sampling_scheduler,
            block_state.timesteps,
            block_state.guidance_scale,
            block_state.guidance_interval,
        )
        with self.progress_bar(total=len(block_state.timesteps)) as progress_bar:
            for i, t in enumerate(block_state.timesteps):
                components, block_state = self.loop_step(components, block_state, i=i, t=t)
                progress_bar.update()
        self.set_block_state(state, block_state)
        return components, state


class AutoencoderEncodeStep(ModularPipelineBlocks):
    """Images to the latents that pipelines draw, with any autoencoder of diffusers for images."""

    model_name = "tc-dit"
    description = "Encodes images with the autoencoder, scaled as pipelines take latents."
    expected_components: ClassVar = [VAE]
    inputs: ClassVar = [
        InputParam(
            "image",
            required=True,
            description="PIL images, arrays or tensors of one size, in [0, 1], whose sides are multiples of the "
            "compression ratio.",
        )
    ]
    intermediate_outputs: ClassVar = [OUT_LATENTS]

    @torch.no_grad()
    def __call__(self, components: ModularPipeline, state: PipelineState) -> tuple[ModularPipeline, PipelineState]:
        asked = self.get_block_state(state)
        ratio = spatial_ratio_of(components.vae)
        # Resizing would change the picture, and its aspect ratio too. Four channels are no latent here.
        processor = VaeImageProcessor(vae_scale_factor=ratio, do_resize=False, vae_latent_channels=None)
        pixels = processor.preprocess(as_rgb_of_one_size(asked.image)).to(components._execution_device)
        height, width = pixels.shape[-2:]
        # AutoencoderRAE resizes by itself.
        if (height % ratio or width % ratio) and not isinstance(components.vae, AutoencoderRAE):
            raise ValueError(
                f"images of {height}x{width} pixels (height x width) have sides that are no multiples of the "
                f"compression ratio {ratio}; resize them, or pad them with PaddingImageProcessor."
            )
        asked.latents = encode_images(components.vae, pixels)
        self.set_block_state(state, asked)
        return components, state


class AutoencoderDecodeStep(ModularPipelineBlocks):
    """Latents to images, with any autoencoder of diffusers for images."""

    model_name = "tc-dit"
    description = "Decodes latents with the autoencoder; they stay what they are with output_type='latent'."
    expected_components: ClassVar = [VAE]
    inputs: ClassVar = [InputParam("latents", required=True), OUTPUT_TYPE, GENERATOR]
    intermediate_outputs: ClassVar = [IMAGES]

    @torch.no_grad()
    def __call__(self, components: ModularPipeline, state: PipelineState) -> tuple[ModularPipeline, PipelineState]:
        asked = self.get_block_state(state)
        asked.images = asked.latents
        if asked.output_type != "latent":
            processor = VaeImageProcessor(vae_scale_factor=spatial_ratio_of(components.vae))
            decoded = decode_latents(components.vae, asked.latents, asked.generator)
            asked.images = processor.postprocess(decoded, output_type=asked.output_type)
        self.set_block_state(state, asked)
        return components, state


class TCDiTBlocks(SequentialPipelineBlocks):
    """
    Class-conditional generation, the same as [`TCDiTPipeline`] and in steps that can be replaced.

    ```py
    >>> modular = TCDiTBlocks().init_pipeline("path/to/a/saved/TCDiTPipeline")
    >>> modular.load_components()
    >>> images = modular(class_labels=["flags"], guidance_scale=2.0, output="images")
    ```
    """

    model_name = "tc-dit"
    description = "Class-conditional generation with a diffusion transformer in the latent space of an autoencoder."
    block_classes: ClassVar = [
        TCDiTInputStep,
        TCDiTSetTimestepsStep,
        TCDiTPrepareLatentsStep,
        TCDiTDenoiseStep,
        AutoencoderDecodeStep,
    ]
    block_names: ClassVar = ["input", "set_timesteps", "prepare_latents", "denoise", "decode"]

    def init_pipeline(self, *args: Any, **kwargs: Any) -> ModularPipeline:
        """As in diffusers; what a saved plain pipeline lacks is not looked for."""
        pipeline = super().init_pipeline(*args, **kwargs)
        for spec in pipeline._component_specs.values():
            if spec.type_hint is None and spec.pretrained_model_name_or_path is not None:
                spec.pretrained_model_name_or_path = None
        return pipeline


class AutoencoderReconstructionBlocks(SequentialPipelineBlocks):
    """
    Encodes and decodes images with any autoencoder of diffusers for images.

    ```py
    >>> modular = AutoencoderReconstructionBlocks().init_pipeline()
    >>> modular.update_components(vae=vae)
    >>> modular(image=image, output=["latents", "images"])
    ```
    """

    model_name = "tc-dit"
    description = "Encodes images to latents as pipelines take them, and decodes them."
    block_classes: ClassVar = [AutoencoderEncodeStep, AutoencoderDecodeStep]
    block_names: ClassVar = ["encode", "decode"]
