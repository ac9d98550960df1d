# Copyright 2026 The TCAE-Diffusers authors. Licensed under the Apache License, Version 2.0.
"""`TCDiTPipeline`: class-conditional image generation with a diffusion transformer in the latent space of an
autoencoder.

Besides torch and diffusers it imports only sibling modules, so that an export can include them for people who do not
have this package; see `tcae_diffusers.pipelines.remote_code_export`.
"""

import inspect
from collections.abc import Callable, Collection, Iterable
from typing import Any

import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.guiders import AutoGuidance, BaseGuidance
from diffusers.image_processor import VaeImageProcessor
from diffusers.models.embeddings import LabelEmbedding
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel
from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils import logging
from diffusers.utils.torch_utils import is_compiled_module, randn_tensor

from .class_names import ClassNames
from .guidance import (
    CONDITIONAL,
    UNCONDITIONAL,
    check_guider,
    combined,
    guider_of_call,
    pass_name,
    weakened,
    weakens_layers,
)
from .latents import decode_latents, spatial_ratio_of

logger = logging.get_logger(__name__)

# Prediction types of flow matching: the velocity, and the clean latent. Schedulers know the first.
FLOW, FLOW_SAMPLE = "flow_prediction", "flow_sample"


class TCDiTPipeline(DiffusionPipeline):
    r"""
    Generates images of given classes: noise -> diffusion transformer and scheduler -> latent -> autoencoder -> image.

    The model's prediction must fit the scheduler, and the pipeline checks that it does:

    - `"flow_prediction"` (flow matching): `x_t = (1 - sigma) * x_0 + sigma * noise`, the transformer is called with
      `timestep = 1000 * sigma` (float) and predicts the velocity `v = noise - x_0`. Schedulers:
      `FlowMatchEulerDiscrete`, `FlowMatchHeunDiscrete`, and DPM-Solver++ or UniPC with
      `prediction_type="flow_prediction", use_flow_sigmas=True`.
    - `"flow_sample"`: the same, but the transformer predicts the clean latent `x_0`; the pipeline turns it into the
      velocity `(x_t - x_0) / sigma` that these schedulers take.
    - `"epsilon"`, `"v_prediction"`, `"sample"`: variance-preserving diffusion with DDPM, DDIM, DPM-Solver++, UniPC,
      Euler and the other schedulers of diffusers.

    Args:
        vae ([`AutoencoderTC`] or another diffusers autoencoder):
            Decodes latents to images in `[-1, 1]`. Latents are `(B, C, H / ratio, W / ratio)`.
        transformer ([`~diffusers.DiTTransformer2DModel`] or a model with its signature):
            Called as `transformer(hidden_states, timestep=, class_labels=, return_dict=)` with `hidden_states` of
            shape `(B, C, h, w)`. The null class, for "no label", is the last row of its class table. A
            transformer without diffusers' `LabelEmbedding` names it with `null_class_id` in its config, and the number
            of classes with `num_classes`.
        scheduler ([`~diffusers.SchedulerMixin`]):
            Any scheduler whose prediction type is the transformer's.
        guidance_transformer (same type as `transformer`, *optional*):
            A weaker transformer (smaller, or an earlier checkpoint) for autoguidance (Karras et al., 2024): its
            prediction replaces that for the null class, whatever the guider.
        guider ([`~diffusers.guiders.BaseGuidance`], *optional*):
            How predictions are combined: any of `diffusers.guiders` that needs no more than predictions with and
            without a label, and those that weaken layers where they find layers that they know. By default
            classifier-free guidance. [`~diffusers.guiders.AutoGuidance`] weakens the transformer at the class asked
            for, as in its paper, and needs no null class.
        id2label (`dict[int, str]` or `list[str]`, *optional*):
            Class names. A value may list synonyms: `"tench, Tinca tinca"`. Kept in `model_index.json`.
        prediction_type (`str`, *optional*):
            What the transformer predicts, see above. By default what `transformer.config.prediction_type` says, else
            what `scheduler` is configured for. Kept in `model_index.json`, so that a later change of scheduler is
            checked against the training and not against itself.

        has_null_class (`bool`, defaults to `True`):
            `False` for a transformer that never saw "no label" in training, although its class table has a row for it
            as that of every DiT has: guidance by random weights would spoil images. Kept in `model_index.json`.

    Raises:
        ValueError: if `id2label` names an id twice, or one that the transformer has no class for.
    """

    model_cpu_offload_seq = "transformer->vae"
    # Autoguidance calls both transformers in every step: moving them in turns would cost more than it saves.
    _exclude_from_cpu_offload = ["guidance_transformer"]  # noqa: RUF012 - diffusers' own form
    _optional_components = ["guidance_transformer", "guider"]  # noqa: RUF012
    _callback_tensor_inputs = ["latents", "class_labels", "model_output"]  # noqa: RUF012

    def __init__(
        self,
        vae: ModelMixin,
        transformer: ModelMixin,
        scheduler: SchedulerMixin,
        guidance_transformer: ModelMixin | None = None,
        guider: BaseGuidance | None = None,
        id2label: dict | list | None = None,
        prediction_type: str | None = None,
        has_null_class: bool = True,
    ):
        super().__init__()
        self.register_modules(
            vae=vae,
            transformer=transformer,
            scheduler=scheduler,
            guidance_transformer=guidance_transformer,
            guider=guider,
        )
        prediction_type = prediction_type or transformer.config.get("prediction_type")
        prediction_type = prediction_type or scheduler_prediction_type(scheduler)
        # JSON has only string keys; with string keys the config is the same before and after saving.
        id2label = dict(enumerate(id2label)) if isinstance(id2label, list) else id2label or {}
        names = {str(int(class_id)): str(name) for class_id, name in id2label.items()}
        if len(names) != len(id2label):
            raise ValueError(f"id2label contains ids both as a number and as text: {', '.join(map(repr, id2label))}.")
        self.register_to_config(id2label=names or None, prediction_type=prediction_type, has_null_class=has_null_class)
        known, beyond = self._transformer_num_classes, max(self.id2label, default=-1)
        if known is not None and beyond >= known:
            raise ValueError(
                f"id2label has class {beyond} ({self.id2label[beyond]!r}), but the transformer has the classes 0 to "
                f"{known - 1}; pass the names it was trained with."
            )
        self.image_processor = VaeImageProcessor(vae_scale_factor=self.spatial_compression_ratio)

        if scheduler.config.get("clip_sample"):
            logger.warning(
                f"{scheduler.__class__.__name__} has clip_sample=True, which clips the predicted latent to [-1, 1]; "
                "latents of unit variance exceed that. Use from_config(scheduler.config, clip_sample=False)."
            )

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **kwargs: Any) -> "TCDiTPipeline":
        """
        A new pipeline around the components of another one, which are shared and not copied.

        Args:
            pipeline ([`~diffusers.DiffusionPipeline`]): Has at least a `vae`, a `transformer` and a `scheduler`.
            kwargs:
                Components and arguments that replace those of `pipeline`, and `dtype` (`torch.float32` by default, as
                in diffusers), which the shared components are moved to.
        """
        # diffusers takes over a model only if its class is the very one in the signature; here any class may be.
        expected, _ = cls._get_signature_keys(cls)
        shared = {name: component for name, component in pipeline.components.items() if name in expected}
        return super().from_pipe(pipeline, **{**shared, **kwargs})

    # --------------------------------------------------------------------------------------------- what the models say

    @property
    def spatial_compression_ratio(self) -> int:
        """Pixels per latent position along one side."""
        return spatial_ratio_of(self.vae)

    @property
    def num_classes(self) -> int | None:
        """Number of classes without the null class; `None` if unknown. Names count before the rows of
        the transformer's table, which may have unused ones so that its null class is the stock pipeline's 1000."""
        return max(self.id2label) + 1 if self.id2label else self._transformer_num_classes

    @property
    def _transformer_num_classes(self) -> int | None:
        config = self.transformer.config
        return config.get("num_classes", config.get("num_embeds_ada_norm"))

    @property
    def null_class_id(self) -> int | None:
        """Class id for "no label"; `None` for a transformer trained without one."""
        if not self.config.has_null_class:
            return None
        if "null_class_id" in self.transformer.config:
            return self.transformer.config.null_class_id
        for module in self.transformer.modules():
            if isinstance(module, LabelEmbedding):
                has_null_row = module.embedding_table.num_embeddings > module.num_classes
                return module.num_classes if has_null_row else None
        return None

    @property
    def id2label(self) -> dict[int, str]:
        """Class id -> name as it was given, synonyms included."""
        return {int(class_id): name for class_id, name in (self.config.id2label or {}).items()}

    @property
    def labels(self) -> dict[str, int]:
        """Every name and synonym that stands for one class -> its id, sorted by name (the form of
        [`~diffusers.DiTPipeline`])."""
        return ClassNames(self.id2label).unambiguous

    @property
    def _is_flow(self) -> bool:
        return self.config.prediction_type in (FLOW, FLOW_SAMPLE)

    @property
    def current_guider(self) -> BaseGuidance:
        """Guider of the running call; a callback may switch it off for the rest of it, with `disable()`."""
        return self._current_guider

    @property
    def guidance_scale(self) -> float | None:
        """Guidance scale of the running call; `None` for a guider that has several."""
        return self._current_guider.config.get("guidance_scale")

    @property
    def num_timesteps(self) -> int:
        """Number of scheduler steps of the running call."""
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        """Set `pipe._interrupt = True`, from a callback or another thread, to skip the remaining steps."""
        return self._interrupt

    # ---------------------------------------------------------------------------------------------------- class labels

    def get_label_ids(self, label: str | list[str]) -> list[int]:
        """
        Maps class names to class ids.

        Args:
            label (`str` or `list[str]`):
                Names as in `id2label`, in full or one of their synonyms. A name that is not found as written is looked
                up case-insensitively.

        Raises:
            ValueError: if no class has this name (the message suggests similar ones) or several have it (it lists
            their ids).
        """
        if not self.id2label:
            raise ValueError(f"Class name {label!r} given, but this pipeline has no id2label; pass class ids instead.")
        names = ClassNames(self.id2label)
        return [names.id_of(name) for name in ([label] if isinstance(label, str) else label)]

    def _prepare_class_labels(self, class_labels: Any) -> list[int]:
        """Ids of the classes asked for: from an id, a name, a tensor, or any nesting of them."""
        if isinstance(class_labels, str):
            return self.get_label_ids(class_labels)
        if hasattr(class_labels, "tolist"):  # torch.Tensor, np.ndarray and their scalars
            class_labels = class_labels.tolist()
        if isinstance(class_labels, Iterable):
            return [class_id for label in class_labels for class_id in self._prepare_class_labels(label)]
        if isinstance(class_labels, bool) or not isinstance(class_labels, int):
            raise ValueError(
                f"class_labels has {class_labels!r} of type {type(class_labels).__name__}; "
                "expected class ids (int) or names."
            )
        is_null = class_labels == self.null_class_id
        if self.id2label and class_labels not in self.id2label and not is_null:
            known = f"{min(self.id2label)} to {max(self.id2label)}"
            if len(self.id2label) <= max(self.id2label) - min(self.id2label):
                known = f"{len(self.id2label)} of those from {known}"
            raise ValueError(f"Class id {class_labels} is not in id2label, whose ids are {known}; see pipe.id2label.")
        if self.num_classes is not None and not 0 <= class_labels < self.num_classes and not is_null:
            raise ValueError(f"Class id {class_labels} is out of range; expected 0 to {self.num_classes - 1}.")
        return [class_labels]

    # ---------------------------------------------------------------------------------------------------------- checks

    def check_inputs(
        self,
        batch_size: int,
        height: int,
        width: int,
        guidance_interval: tuple[float, float] | None,
        generator: torch.Generator | list[torch.Generator] | None,
        output_type: str,
        callback_on_step_end_tensor_inputs: list[str],
    ) -> None:
        """Raises a `ValueError` for values that would fail only later or generate wrong images."""
        scheduler_type = scheduler_prediction_type(self.scheduler)
        needed_type = FLOW if self._is_flow else self.config.prediction_type
        if scheduler_type != needed_type:
            fix = f'prediction_type="{needed_type}"'
            if self._is_flow:
                fix += f", use_flow_sigmas=True, flow_shift={self.scheduler.config.get('shift', 1.0)}"
            raise ValueError(
                f"The transformer was trained for {self.config.prediction_type!r}, but "
                f"{self.scheduler.__class__.__name__} is configured for {scheduler_type!r}. Configure it "
                f"accordingly, as in DPMSolverMultistepScheduler.from_config(pipe.scheduler.config, {fix})."
            )
        if batch_size == 0:
            raise ValueError("class_labels is empty; pass at least one class id or name.")

        patch_size = self.transformer.config.get("patch_size") or 1
        multiple = self.spatial_compression_ratio * patch_size
        for name, value in (("height", height), ("width", width)):
            if value <= 0 or value % multiple:
                raise ValueError(
                    f"{name} {value} is not a positive multiple of {multiple} (compression ratio "
                    f"{self.spatial_compression_ratio} x patch size {patch_size}); generate a larger image and crop "
                    "it."
                )
        transformer = self.transformer._orig_mod if is_compiled_module(self.transformer) else self.transformer
        if height != width and isinstance(transformer, DiTTransformer2DModel):
            raise ValueError(
                f"DiTTransformer2DModel generates square images only, got height {height} and width {width}."
            )

        start, end = guidance_interval or (0.0, 1.0)
        if not 0 <= start <= end <= 1:
            raise ValueError(
                f"guidance_interval {guidance_interval} must be (start, end) with 0 <= start <= end <= 1."
            )
        if isinstance(generator, list) and len(generator) != batch_size:
            raise ValueError(
                f"{len(generator)} generators for {batch_size} images; pass one per image, or a single one."
            )
        if output_type not in ("pil", "np", "pt", "latent"):
            raise ValueError(f"output_type {output_type!r} must be one of 'pil', 'np', 'pt', 'latent'.")
        unknown = set(callback_on_step_end_tensor_inputs) - set(self._callback_tensor_inputs)
        if unknown:
            raise ValueError(
                f"callback_on_step_end_tensor_inputs has {sorted(unknown)}; expected some of "
                f"{self._callback_tensor_inputs}."
            )

    # ----------------------------------------------------------------------------------------------------------- steps

    def resolve_request(
        self,
        class_labels: Any,
        num_images_per_label: int,
        height: int | None,
        width: int | None,
        latents: torch.Tensor | None,
    ) -> tuple[list[int], int, int]:
        """
        The class id of every image, and height and width in pixels: those asked for, of `latents`, or trained on.

        Raises:
            ValueError: for an unknown or ambiguous class, and for less than one image of each.
        """
        ratio = self.spatial_compression_ratio
        trained_size = self.transformer.config.sample_size * ratio
        if latents is not None and latents.ndim == 4:
            height, width = height or latents.shape[2] * ratio, width or latents.shape[3] * ratio
        if num_images_per_label < 1:
            raise ValueError(f"num_images_per_label {num_images_per_label} must be at least 1.")
        class_ids = [i for i in self._prepare_class_labels(class_labels) for _ in range(num_images_per_label)]
        return class_ids, height or trained_size, width or trained_size

    def latent_shape(self, batch_size: int, height: int, width: int) -> tuple[int, int, int, int]:
        """`(B, C, h, w)` of the latents of images of `height` times `width` pixels."""
        ratio = self.spatial_compression_ratio
        return batch_size, self.transformer.config.in_channels, height // ratio, width // ratio

    def prepare_latents(
        self,
        shape: tuple[int, int, int, int],
        device: torch.device,
        generator: torch.Generator | list[torch.Generator] | None,
        latents: torch.Tensor | None,
    ) -> torch.Tensor:
        """
        The initial noise `(B, C, h, w)` in fp32. The sampler's state is kept in fp32 whatever the models' dtype, so
        that rounding errors do not accumulate and a seed always gives the same noise.
        """
        if latents is None:
            latents = randn_tensor(shape, generator=generator, device=device, dtype=torch.float32)
        elif tuple(latents.shape) != shape:
            raise ValueError(f"latents has shape {tuple(latents.shape)}, expected {shape}.")
        # Schedulers of flow matching have no init_noise_sigma: their start is plain noise.
        return latents.to(device, torch.float32) * getattr(self.scheduler, "init_noise_sigma", 1.0)

    def _scheduler_with_shift(self, timestep_shift: float | None) -> SchedulerMixin:
        """The scheduler, or a copy with another shift: the pipeline's own is left as it will be saved."""
        name, config = self.scheduler.__class__.__name__, self.scheduler.config
        key = shift_argument(self.scheduler)
        if timestep_shift is None:
            for other in SHIFTS:
                # from_config() keeps what the class that it was called with does not know.
                if self._is_flow and key and config.get(other, config[key]) != config[key]:
                    raise ValueError(
                        f"{name} has {key}={config[key]}, and the scheduler that it was made from had "
                        f"{other}={config[other]}: pass {key}={config[other]} to from_config(), or timestep_shift."
                    )
            return self.scheduler
        if key is None or not self._is_flow:
            raise ValueError(
                f"timestep_shift={timestep_shift} needs a flow matching scheduler with a shift, such as "
                f"FlowMatchEulerDiscreteScheduler; {name} has none, so omit timestep_shift."
            )
        if config.get("use_dynamic_shifting"):
            raise ValueError(
                f"timestep_shift={timestep_shift} given, but {name} has use_dynamic_shifting=True: its shift follows "
                "the size of the image; use only one of them."
            )
        if timestep_shift <= 0:
            raise ValueError(f"timestep_shift {timestep_shift} must be above 0; 1 means no shift.")
        return type(self.scheduler).from_config(config, **{key: timestep_shift})

    def _set_timesteps(
        self,
        scheduler: SchedulerMixin,
        num_inference_steps: int,
        latent_shape: tuple[int, int, int, int],
        device: torch.device,
    ) -> torch.Tensor:
        config, kwargs = scheduler.config, {}
        if config.get("use_dynamic_shifting") and "mu" not in inspect.signature(scheduler.set_timesteps).parameters:
            raise ValueError(
                f"{scheduler.__class__.__name__} does not know use_dynamic_shifting, which its config asks for; pass "
                "use_dynamic_shifting=False and a shift to from_config(), or use FlowMatchEulerDiscreteScheduler."
            )
        if config.get("use_dynamic_shifting"):
            # Resolution-dependent shift: linear in the number of tokens, as in the Flux and SD3 pipelines.
            num_tokens = latent_shape[2] * latent_shape[3] // (self.transformer.config.get("patch_size") or 1) ** 2
            slope = (config.max_shift - config.base_shift) / (config.max_image_seq_len - config.base_image_seq_len)
            kwargs["mu"] = config.base_shift + slope * (num_tokens - config.base_image_seq_len)
        if num_inference_steps < 1:
            raise ValueError(f"num_inference_steps {num_inference_steps} must be 1 or more; images would be noise.")
        scheduler.set_timesteps(num_inference_steps, device=device, **kwargs)
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(0)
        return scheduler.timesteps

    def _begin_guidance(
        self,
        scheduler: SchedulerMixin,
        timesteps: torch.Tensor,
        guidance_scale: float | None,
        guidance_interval: tuple[float, float] | None,
    ) -> BaseGuidance:
        # Read once: asking for each timestep inside the loop would wait for the device at every step.
        noise_levels = (timesteps.float() / scheduler.config.num_train_timesteps).tolist()
        guider = guider_of_call(self.guider, guidance_scale, guidance_interval, noise_levels)
        check_guider(guider, self.transformer, self.guidance_transformer, self.null_class_id is not None)
        self._current_guider = guider
        return guider

    def _predict_step(
        self,
        scheduler: SchedulerMixin,
        guider: BaseGuidance,
        latents: torch.Tensor,
        i: int,
        t: torch.Tensor,
        ids: torch.Tensor,
    ) -> torch.Tensor:
        """What the scheduler gets at step `i`: `(B, C, h, w)`, or `(B, 2C, h, w)` if it uses a learned variance."""
        model_input = scheduler.scale_model_input(latents, t) if hasattr(scheduler, "scale_model_input") else latents
        guider.set_state(i, len(scheduler.timesteps), t)
        # The scheduler's noise level, and not the timestep's, which some schedulers round.
        sigma = scheduler.sigmas[i].item() if self.config.prediction_type == FLOW_SAMPLE else None
        model_output = self._guided_prediction(guider, model_input, t, ids, sigma)
        if model_output.shape[1] == 2 * latents.shape[1] and not splits_variance(scheduler):
            model_output = model_output.chunk(2, dim=1)[0]
        return model_output

    @staticmethod
    def _step(
        scheduler: SchedulerMixin,
        model_output: torch.Tensor,
        t: torch.Tensor,
        latents: torch.Tensor,
        generator: torch.Generator | list[torch.Generator] | None,
        eta: float,
    ) -> torch.Tensor:
        known = inspect.signature(scheduler.step).parameters
        kwargs = {name: value for name, value in (("generator", generator), ("eta", eta)) if name in known}
        return scheduler.step(model_output, t, latents, **kwargs, return_dict=False)[0]

    def _predict(
        self, transformer: ModelMixin, latents: torch.Tensor, t: torch.Tensor, ids: torch.Tensor
    ) -> torch.Tensor:
        timestep = t.to(latents.device).expand(latents.shape[0])
        output = transformer(latents.to(transformer.dtype), timestep=timestep, class_labels=ids, return_dict=False)[0]
        return output.float()

    def _guided_prediction(
        self, guider: BaseGuidance, latents: torch.Tensor, t: torch.Tensor, ids: torch.Tensor, sigma: float | None
    ) -> torch.Tensor:
        """
        What the guider makes of the predictions that it asks for, `(B, C or 2C, h, w)`. `sigma` is the noise level
        where the transformer predicts the clean latent: guiders see the velocity, as the scheduler does.
        """
        batches = guider.prepare_inputs({})
        for batch in batches:
            batch.class_labels = self._labels_of_pass(guider, pass_name(guider, batch), ids)
        predictions = self._predict_passes(guider, batches, latents, t)
        if sigma is not None:
            predictions = [(latents - each[:, : latents.shape[1]]) / sigma for each in predictions]
        # A learned variance, if any, fills the channels after the first C and is not guided (as in DiT).
        channels = latents.shape[1]
        for batch, prediction in zip(batches, predictions, strict=True):
            batch.noise_pred = prediction[:, :channels]
        return torch.cat([combined(guider, batches), predictions[0][:, channels:]], dim=1)

    def _labels_of_pass(self, guider: BaseGuidance, name: str, ids: torch.Tensor) -> torch.Tensor:
        """The null class where the guider asks for a prediction without a label and nothing else is weaker."""
        has_weaker = isinstance(guider, AutoGuidance) or self.guidance_transformer is not None
        if name != UNCONDITIONAL or has_weaker:
            return ids
        null_class_id = self.null_class_id
        assert null_class_id is not None, "check_guider refuses guidance without a null class"
        return torch.full_like(ids, null_class_id)

    def _predict_passes(
        self, guider: BaseGuidance, batches: list[Any], latents: torch.Tensor, t: torch.Tensor
    ) -> list[torch.Tensor]:
        names = [pass_name(guider, batch) for batch in batches]
        is_one_model = not weakens_layers(guider) and set(names) <= {CONDITIONAL, UNCONDITIONAL}
        if is_one_model and self.guidance_transformer is None:
            labels = torch.cat([batch.class_labels for batch in batches])
            together = self._predict(self.transformer, torch.cat([latents] * len(batches)), t, labels)
            return list(together.chunk(len(batches)))
        predictions = []
        for name, batch in zip(names, batches, strict=True):
            is_guide = name == UNCONDITIONAL and self.guidance_transformer is not None
            transformer = self.guidance_transformer if is_guide else self.transformer
            with weakened(guider, transformer, name):
                predictions.append(self._predict(transformer, latents, t, batch.class_labels))
        return predictions

    @torch.no_grad()
    def decode_latents(
        self,
        latents: torch.Tensor,
        output_type: str = "pil",
        vae: ModelMixin | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
    ) -> Any:
        """
        Images of latents.

        Args:
            latents (`torch.Tensor` of shape `(B, C, h, w)`): As the pipeline returns them with `output_type="latent"`.
            output_type (`str`, defaults to `"pil"`): `"pil"`, `"np"` or `"pt"`, as for the pipeline.
            vae ([`AutoencoderTC`] or another diffusers autoencoder, *optional*):
                Decodes instead of the pipeline's own, whose encoder and latent statistics it must have.
            generator (`torch.Generator` or one per image, *optional*):
                For an autoencoder that draws noise while it decodes ([`~diffusers.ConsistencyDecoderVAE`]).
        """
        images = decode_latents(vae or self.vae, latents, generator)
        return self.image_processor.postprocess(images, output_type=output_type)

    # ------------------------------------------------------------------------------------------------------------ call

    @torch.no_grad()
    def __call__(
        self,
        class_labels: int | str | list | torch.Tensor,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        guidance_scale: float | None = None,
        guidance_interval: tuple[float, float] | None = None,
        timestep_shift: float | None = None,
        num_images_per_label: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        eta: float = 0.0,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[[Any, int, Any, dict], dict] | PipelineCallback | None = None,
        callback_on_step_end_tensor_inputs: list[str] | None = None,
    ) -> ImagePipelineOutput | tuple:
        r"""
        Draws images.

        Args:
            class_labels (`int`, `str`, `torch.Tensor` or lists of them):
                Class ids or names. `[[1], [2]]` is read as `[1, 2]`. `pipe.null_class_id` generates unconditionally.
            height, width (`int`, *optional*):
                Size in pixels, multiples of the compression ratio times the patch size. Default: the size trained on.
            num_inference_steps (`int`, defaults to 50):
                Denoising steps. Heun calls the transformer twice in all but the last.
            guidance_scale (`float`, *optional*):
                1 or less: no guidance. Above 1: guidance by the pipeline's guider with this scale instead of its own;
                without a guider, classifier-free guidance against the null class (Ho and Salimans, 2022), or
                autoguidance when the pipeline has a `guidance_transformer`. Unset: the scale of the guider, or 4.
            guidance_interval (`tuple[float, float]`, *optional*):
                Guide only where `start <= t <= end`, with `t = timestep / 1000` the noise level: 1 is pure noise, 0 is
                clean (Kynkäänniemi et al., 2024). For flow matching `t` is sigma. Outside, a step costs half. Unset:
                where the guider says, or everywhere.
            timestep_shift (`float`, *optional*):
                Flow matching only: draw with this shift of the noise levels instead of the scheduler's, `sigma =
                shift * t / (1 + (shift - 1) * t)`. Above 1 more steps go to noise (SD3, section 5.3.2). The scheduler
                itself is left as it is.
            num_images_per_label (`int`, defaults to 1):
                Images of one label follow each other in the output.
            generator (`torch.Generator` or one per image, *optional*):
                With one per image, an image depends on its own seed only, not on what else is in the batch.
            latents (`torch.Tensor` of shape `(B, C, height / ratio, width / ratio)`, *optional*):
                Starting noise of unit variance, `B` being labels times `num_images_per_label`.
            eta (`float`, defaults to 0.0):
                DDIM's eta; other schedulers ignore it.
            output_type (`str`, defaults to `"pil"`):
                `"pil"`, `"np"` (`(B, H, W, 3)` in `[0, 1]`), `"pt"` (`(B, 3, H, W)` in `[0, 1]`) or `"latent"` (`(B,
                C, h, w)`, fp32, as the scheduler left it: what the transformer was trained on).
            return_dict (`bool`, defaults to `True`): `ImagePipelineOutput` with `.images`, or a tuple of them.
            callback_on_step_end (`Callable` or `PipelineCallback`, *optional*):
                Called as `callback(pipe, step, timestep, tensors)` after each step; may return changed `latents` or
                `class_labels`, and may set `pipe._interrupt = True` to skip the remaining steps.
            callback_on_step_end_tensor_inputs (`list[str]`, *optional*):
                Which tensors it gets: of `"latents"` (default), `"class_labels"`, `"model_output"`.

        Returns:
            [`~diffusers.ImagePipelineOutput`] or `tuple`.

        Raises:
            ValueError:
                for an unknown or ambiguous class, a size, latent or number of generators that does not fit, guidance
                without a null class or by a guider that cannot guide this transformer, a scheduler of another
                prediction type, or a shift that it does not have.

        Examples:

        ```py
        >>> import torch
        >>> import tcae_diffusers
        >>> from diffusers import DiffusionPipeline

        >>> pipe = DiffusionPipeline.from_pretrained("path/to/a/saved/pipeline")
        >>> generators = [torch.Generator().manual_seed(seed) for seed in range(8)]
        >>> labels = ["flags", "food-drink"]
        >>> images = pipe(labels, num_images_per_label=4, guidance_scale=2.0, generator=generators).images
        ```
        """
        if isinstance(callback_on_step_end, (PipelineCallback, MultiPipelineCallbacks)):
            callback_on_step_end_tensor_inputs = callback_on_step_end.tensor_inputs
        if callback_on_step_end_tensor_inputs is None:
            callback_on_step_end_tensor_inputs = ["latents"]

        # 1. Check the request
        class_ids, height, width = self.resolve_request(class_labels, num_images_per_label, height, width, latents)
        self.check_inputs(
            len(class_ids),
            height,
            width,
            guidance_interval,
            generator,
            output_type,
            callback_on_step_end_tensor_inputs,
        )
        scheduler = self._scheduler_with_shift(timestep_shift)
        self._interrupt = False

        # 2. Prepare timesteps, guidance, labels and noise
        device = self._execution_device
        ids = torch.tensor(class_ids, device=device)
        latent_shape = self.latent_shape(len(class_ids), height, width)
        timesteps = self._set_timesteps(scheduler, num_inference_steps, latent_shape, device)
        guider = self._begin_guidance(scheduler, timesteps, guidance_scale, guidance_interval)
        latents = self.prepare_latents(latent_shape, device, generator, latents)

        # 3. Denoise
        self._num_timesteps = len(timesteps)
        with self.progress_bar(total=len(timesteps)) as progress_bar:
            for i, t in enumerate(timesteps):
                if self.interrupt:
                    continue
                model_output = self._predict_step(scheduler, guider, latents, i, t, ids)
                latents = self._step(scheduler, model_output, t, latents, generator, eta)

                if callback_on_step_end is not None:
                    tensors = {"latents": latents, "class_labels": ids, "model_output": model_output}
                    asked = {name: tensors[name] for name in callback_on_step_end_tensor_inputs}
                    changed = callback_on_step_end(self, i, t, asked) or {}
                    latents = changed.get("latents", latents)
                    ids = changed.get("class_labels", ids)
                progress_bar.update()

        # 4. Decode
        images = latents
        if output_type != "latent":
            images = self.decode_latents(latents, output_type, generator=generator)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)


# What schedulers call the shift of their noise levels.
SHIFTS = ("shift", "flow_shift")


def _arguments_of(scheduler: SchedulerMixin) -> Collection[str]:
    """What its class can be configured with; its config may hold more, of the class that it was made from."""
    return inspect.signature(type(scheduler).__init__).parameters


def shift_argument(scheduler: SchedulerMixin) -> str | None:
    """Which of [`SHIFTS`] the class of `scheduler` has, if any."""
    return next((key for key in SHIFTS if key in _arguments_of(scheduler)), None)


def splits_variance(scheduler: SchedulerMixin) -> bool:
    """
    Whether `scheduler` takes a prediction with its variance behind it, and uses both.

    Raises:
        ValueError: It would cut the prediction to three channels, as diffusers' DPM-Solver does.
    """
    learned = str(scheduler.config.get("variance_type")).startswith("learned")
    if not learned or "variance_type" not in _arguments_of(scheduler):
        return False
    if "solver_order" in _arguments_of(scheduler):
        raise ValueError(
            f"{scheduler.__class__.__name__} with variance_type={scheduler.config.variance_type!r} takes images only, "
            "not latents; pass variance_type=None to from_config()."
        )
    return True


def scheduler_prediction_type(scheduler: SchedulerMixin) -> str:
    """
    How `scheduler` interprets the model's output: `"flow_prediction"`, `"epsilon"`, `"v_prediction"` or `"sample"`.

    Raises:
        ValueError: for `"flow_prediction"` with a variance-preserving noise schedule, which would generate only noise;
            and for schedulers that read the output in a way of their own.
    """
    if scheduler.__class__.__name__.startswith("FlowMatch"):
        return FLOW
    if "prediction_type" not in _arguments_of(scheduler) or scheduler.__class__.__name__.startswith("EDM"):
        raise ValueError(
            f"{scheduler.__class__.__name__} reads a model's output in a way of its own, which no prediction type of "
            "this pipeline is; use a scheduler with prediction_type, such as DDIM, DPM-Solver++, UniPC or Euler, or a "
            "FlowMatch scheduler."
        )
    prediction_type = scheduler.config.get("prediction_type", "epsilon")
    if prediction_type == FLOW and not scheduler.config.get("use_flow_sigmas"):
        raise ValueError(
            f"{scheduler.__class__.__name__} has prediction_type='flow_prediction' but not use_flow_sigmas=True; "
            "use from_config(scheduler.config, prediction_type='flow_prediction', use_flow_sigmas=True, "
            "flow_shift=...) with the shift of training."
        )
    return prediction_type
