"""Stock pipelines of diffusers around an [`AutoencoderTC`], with random denoisers just large enough to run.

Each function returns the pipeline class, its components but the vae, and what it is called with. Text encoders are
left out: every pipeline takes their output directly. Latents have 4 channels and 1/32 of the image size.
"""

import torch
from diffusers import (
    AuraFlowPipeline,
    AuraFlowTransformer2DModel,
    ChromaPipeline,
    ChromaTransformer2DModel,
    ClassifierFreeGuidance,
    CogView4Pipeline,
    CogView4Transformer2DModel,
    DDIMScheduler,
    DiTPipeline,
    DPMSolverMultistepScheduler,
    ErnieImagePipeline,
    ErnieImageTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Pipeline,
    Flux2Transformer2DModel,
    FluxImg2ImgPipeline,
    FluxPipeline,
    FluxTransformer2DModel,
    GlmImagePipeline,
    GlmImageTransformer2DModel,
    HiDreamImagePipeline,
    HiDreamImageTransformer2DModel,
    HunyuanImagePipeline,
    HunyuanImageTransformer2DModel,
    Ideogram4Pipeline,
    Ideogram4Transformer2DModel,
    Kandinsky5T2IPipeline,
    Kandinsky5Transformer3DModel,
    Krea2Pipeline,
    Krea2Transformer2DModel,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    Lumina2Pipeline,
    Lumina2Transformer2DModel,
    OvisImagePipeline,
    OvisImageTransformer2DModel,
    PixArtAlphaPipeline,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    PRXPipeline,
    PRXTransformer2DModel,
    QwenImageImg2ImgPipeline,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SanaControlNetModel,
    SanaControlNetPipeline,
    SanaPipeline,
    SanaSprintImg2ImgPipeline,
    SanaSprintPipeline,
    SanaTransformer2DModel,
    SCMScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Img2ImgPipeline,
    StableDiffusion3Pipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    ZImageImg2ImgPipeline,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from PIL import Image

from .conftest import make_transformer

CHANNELS = 4
HEIGHT, WIDTH = 128, 64
SIZE = {"height": HEIGHT, "width": WIDTH}
STEPS = {"num_inference_steps": 2}


def random(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def image():
    """An image in [0, 1], as pipelines take tensors."""
    return torch.rand(1, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0))


def prompt(length=4, dim=8, negative=True, mask=None, pooled=None):
    """Keyword arguments that stand for an encoded prompt."""
    kwargs = {}
    for prefix in ("", "negative_")[: 1 + negative]:
        kwargs[f"{prefix}prompt_embeds"] = random(1, length, dim) + len(prefix)
        if mask:
            kwargs[f"{prefix}prompt_attention_mask"] = torch.ones(1, length, dtype=mask)
        if pooled:
            kwargs[f"{prefix}pooled_prompt_embeds"] = random(1, pooled) + len(prefix)
    return kwargs


def without_text_encoder(*numbers):
    suffixes = [""] + [f"_{number}" for number in numbers]
    return {f"{part}{suffix}": None for part in ("text_encoder", "tokenizer") for suffix in suffixes}


def dit():
    transformer = make_transformer(in_channels=CHANNELS, num_embeds_ada_norm=1000)
    components = {"transformer": transformer, "scheduler": DDIMScheduler(clip_sample=False)}
    return DiTPipeline, components, {"class_labels": [1], "guidance_scale": 2.0, **STEPS}


SANA = {
    "in_channels": CHANNELS,
    "out_channels": CHANNELS,
    "num_layers": 1,
    "num_attention_heads": 2,
    "attention_head_dim": 4,
    "num_cross_attention_heads": 2,
    "cross_attention_head_dim": 4,
    "cross_attention_dim": 8,
    "caption_channels": 8,
    "sample_size": 4,
}
SANA_CALL = {"use_resolution_binning": False, **SIZE, **STEPS}


def sana():
    components = {
        "transformer": SanaTransformer2DModel(**SANA),
        "scheduler": FlowMatchEulerDiscreteScheduler(),
        **without_text_encoder(),
    }
    return SanaPipeline, components, {**prompt(mask=torch.long), **SANA_CALL, "negative_prompt": None}


def sana_controlnet():
    _, components, call = sana()
    components["controlnet"] = SanaControlNetModel(**SANA)
    # This pipeline takes a tensor as it is, in [-1, 1], where the others take [0, 1].
    return SanaControlNetPipeline, components, {**call, "control_image": image() * 2 - 1}


def sana_sprint():
    _, components, _ = sana()
    components["transformer"] = SanaTransformer2DModel(**SANA, guidance_embeds=True, qk_norm="rms_norm_across_heads")
    components["scheduler"] = SCMScheduler()
    return SanaSprintPipeline, components, {**prompt(mask=torch.long, negative=False), **SANA_CALL}


def sana_sprint_img2img():
    _, components, call = sana_sprint()
    return SanaSprintImg2ImgPipeline, components, {**call, "image": image(), "strength": 0.5}


def pixart_alpha(pipeline_class=PixArtAlphaPipeline):
    transformer = PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=4,
        in_channels=CHANNELS,
        out_channels=2 * CHANNELS,
        num_layers=1,
        cross_attention_dim=8,
        caption_channels=8,
        sample_size=2,
        patch_size=1,
        use_additional_conditions=False,
    )
    components = {"transformer": transformer, "scheduler": DPMSolverMultistepScheduler(), **without_text_encoder()}
    call = {**prompt(mask=torch.long), **SIZE, **STEPS, "use_resolution_binning": False, "negative_prompt": None}
    return pipeline_class, components, call


def pixart_sigma():
    return pixart_alpha(PixArtSigmaPipeline)


def unet(**config):
    return UNet2DConditionModel(
        **{
            "in_channels": CHANNELS,
            "out_channels": CHANNELS,
            "sample_size": 4,
            "block_out_channels": (8, 16),
            "layers_per_block": 1,
            "norm_num_groups": 4,
            "cross_attention_dim": 8,
            "attention_head_dim": 4,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
            **config,
        }
    )


def stable_diffusion():
    components = {
        "unet": unet(),
        "scheduler": DDIMScheduler(clip_sample=False),
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
        **without_text_encoder(),
    }
    return StableDiffusionPipeline, components, {**prompt(), **SIZE, **STEPS}


def stable_diffusion_img2img():
    _, components, _ = stable_diffusion()
    return StableDiffusionImg2ImgPipeline, components, {**prompt(), **STEPS, "image": image(), "strength": 1.0}


def latent_consistency():
    _, components, _ = stable_diffusion()
    components["unet"] = unet(time_cond_proj_dim=8)
    components["scheduler"] = LCMScheduler(clip_sample=False)
    return LatentConsistencyModelPipeline, components, {**prompt(negative=False), **SIZE, **STEPS}


def stable_diffusion_xl():
    denoiser = unet(
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=6 * 4 + 8,
        use_linear_projection=True,
    )
    components = {"unet": denoiser, "scheduler": DDIMScheduler(clip_sample=False), **without_text_encoder(2)}
    return StableDiffusionXLPipeline, components, {**prompt(pooled=8), **SIZE, **STEPS}


def stable_diffusion_xl_img2img():
    _, components, _ = stable_diffusion_xl()
    return (
        StableDiffusionXLImg2ImgPipeline,
        components,
        {**prompt(pooled=8), **STEPS, "image": image(), "strength": 1.0},
    )


def stable_diffusion_3():
    transformer = SD3Transformer2DModel(
        sample_size=4,
        patch_size=1,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=8,
        caption_projection_dim=16,
        pooled_projection_dim=8,
        pos_embed_max_size=8,
    )
    scheduler = FlowMatchEulerDiscreteScheduler()
    components = {"transformer": transformer, "scheduler": scheduler, **without_text_encoder(2, 3)}
    return StableDiffusion3Pipeline, components, {**prompt(pooled=8), **SIZE, **STEPS}


def stable_diffusion_3_img2img():
    _, components, call = stable_diffusion_3()
    return StableDiffusion3Img2ImgPipeline, components, {**call, "image": image(), "strength": 1.0}


def flux():
    transformer = FluxTransformer2DModel(
        in_channels=4 * CHANNELS,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=8,
        pooled_projection_dim=8,
        axes_dims_rope=(4, 4, 8),
    )
    scheduler = FlowMatchEulerDiscreteScheduler()
    components = {"transformer": transformer, "scheduler": scheduler, **without_text_encoder(2)}
    return FluxPipeline, components, {**prompt(pooled=8, negative=False), **SIZE, **STEPS}


def flux_img2img():
    _, components, call = flux()
    return FluxImg2ImgPipeline, components, {**call, "image": image(), "strength": 1.0}


def lumina2():
    transformer = Lumina2Transformer2DModel(
        sample_size=4,
        patch_size=2,
        in_channels=CHANNELS,
        hidden_size=24,
        num_layers=1,
        num_refiner_layers=1,
        num_attention_heads=3,
        num_kv_heads=1,
        multiple_of=2,
        axes_dim_rope=(4, 2, 2),
        axes_lens=(128, 128, 128),
        cap_feat_dim=8,
    )
    components = {
        "transformer": transformer,
        "scheduler": FlowMatchEulerDiscreteScheduler(),
        **without_text_encoder(),
    }
    return Lumina2Pipeline, components, {**prompt(mask=torch.long), **SIZE, **STEPS}


def hidream():
    transformer = HiDreamImageTransformer2DModel(
        patch_size=2,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_channels=[8, 8],
        text_emb_dim=8,
        num_routed_experts=2,
        num_activated_experts=1,
        axes_dims_rope=(4, 2, 2),
        max_resolution=(32, 32),
        llama_layers=[0, 1],
        force_inference_output=True,
    )
    scheduler = FlowMatchEulerDiscreteScheduler()
    components = {"transformer": transformer, "scheduler": scheduler, **without_text_encoder(2, 3, 4)}
    call = {}
    for prefix in ("", "negative_"):
        call[f"{prefix}prompt_embeds_t5"] = random(1, 4, 8)
        call[f"{prefix}prompt_embeds_llama3"] = random(2, 1, 4, 8)
        call[f"{prefix}pooled_prompt_embeds"] = random(1, 8)
    return HiDreamImagePipeline, components, {**call, "height": 128, "width": 128, **STEPS}


def aura_flow():
    transformer = AuraFlowTransformer2DModel(
        sample_size=4,
        patch_size=1,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=8,
        caption_projection_dim=16,
        pos_embed_max_size=64,
    )
    components = {
        "transformer": transformer,
        "scheduler": FlowMatchEulerDiscreteScheduler(),
        **without_text_encoder(),
    }
    return AuraFlowPipeline, components, {**prompt(mask=torch.long), **SIZE, **STEPS}


def cogview4():
    transformer = CogView4Transformer2DModel(
        patch_size=1,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        text_embed_dim=8,
        time_embed_dim=8,
        condition_dim=4,
        sample_size=4,
        rope_axes_dim=(8, 8),
    )
    scheduler = FlowMatchEulerDiscreteScheduler(
        base_shift=0.25, max_shift=0.75, use_dynamic_shifting=True, time_shift_type="linear"
    )
    components = {"transformer": transformer, "scheduler": scheduler, **without_text_encoder()}
    return CogView4Pipeline, components, {**prompt(), **SIZE, **STEPS}


def prx():
    transformer = PRXTransformer2DModel(
        in_channels=CHANNELS,
        patch_size=1,
        context_in_dim=8,
        hidden_size=16,
        mlp_ratio=2.0,
        num_heads=2,
        depth=1,
        axes_dim=[4, 4],
    )
    components = {
        "transformer": transformer,
        "scheduler": FlowMatchEulerDiscreteScheduler(),
        **without_text_encoder(),
    }
    return PRXPipeline, components, {**prompt(mask=torch.bool), **SIZE, **STEPS, "use_resolution_binning": False}


def chroma():
    transformer = ChromaTransformer2DModel(
        in_channels=4 * CHANNELS,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=8,
        axes_dims_rope=(4, 4, 8),
        approximator_num_channels=8,
        approximator_hidden_dim=16,
        approximator_layers=1,
    )
    components = {
        "transformer": transformer,
        "scheduler": FlowMatchEulerDiscreteScheduler(),
        **without_text_encoder(),
    }
    return ChromaPipeline, components, {**prompt(mask=torch.bool), **SIZE, **STEPS}


def hunyuan_image():
    transformer = HunyuanImageTransformer2DModel(
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        text_embed_dim=8,
        text_embed_2_dim=8,
        rope_axes_dim=(4, 4),
    )
    components = {
        "transformer": transformer,
        "scheduler": FlowMatchEulerDiscreteScheduler(),
        "guider": ClassifierFreeGuidance(guidance_scale=2.0),
        **without_text_encoder(2),
    }
    call = {}
    for name in ("prompt_embeds", "negative_prompt_embeds"):
        for suffix in ("", "_2"):
            call[f"{name}{suffix}"] = random(1, 4, 8)
            call[f"{name}_mask{suffix}"] = torch.ones(1, 4, dtype=torch.long)
    return HunyuanImagePipeline, components, {**call, **SIZE, **STEPS}


def z_image():
    transformer = ZImageTransformer2DModel(
        in_channels=CHANNELS,
        dim=32,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=8,
        axes_dims=[8, 4, 4],
        axes_lens=[128, 32, 32],
    )
    components = {
        "transformer": transformer,
        "scheduler": FlowMatchEulerDiscreteScheduler(),
        **without_text_encoder(),
    }
    call = {name: [each[0]] for name, each in prompt().items()}
    return ZImagePipeline, components, {**call, **SIZE, **STEPS}


def z_image_img2img():
    _, components, call = z_image()
    return ZImageImg2ImgPipeline, components, {**call, "image": image(), "strength": 1.0}


FLUX2 = {
    "in_channels": 4 * CHANNELS,
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 8,
    "timestep_guidance_channels": 8,
    "axes_dims_rope": (4, 4, 4, 4),
}


def flux2():
    components = {
        "transformer": Flux2Transformer2DModel(**FLUX2),
        "scheduler": FlowMatchEulerDiscreteScheduler(),
        **without_text_encoder(),
    }
    return Flux2Pipeline, components, {**prompt(negative=False), **SIZE, **STEPS}


def flux2_klein():
    _, components, _ = flux2()
    components["transformer"] = Flux2Transformer2DModel(**FLUX2, guidance_embeds=False)
    # This one takes reference images as pictures only.
    picture = Image.fromarray((image()[0] * 255).round().byte().permute(1, 2, 0).numpy())
    return Flux2KleinPipeline, components, {**prompt(), **SIZE, **STEPS, "image": picture}


def ideogram4():
    def transformer():
        return Ideogram4Transformer2DModel(
            in_channels=4 * CHANNELS,
            num_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            intermediate_size=16,
            adaln_dim=8,
            llm_features_dim=8,
            mrope_section=(4, 2, 2),
        )

    components = {
        "transformer": transformer(),
        "unconditional_transformer": transformer(),
        "scheduler": FlowMatchEulerDiscreteScheduler(),
        **without_text_encoder(),
    }
    guidance = {"guidance_scale": 2.0, "guidance_schedule": None, "max_sequence_length": 4}
    return Ideogram4Pipeline, components, {"prompt": "flags", **guidance, **SIZE, **STEPS}


def encoded_by_ideogram4(prompt, grid_h, grid_w, max_sequence_length, device):
    """Instead of its text encoder, whose output this pipeline does not take."""
    ids = Ideogram4Pipeline._prepare_ids([max_sequence_length], grid_h, grid_w, max_sequence_length, device)
    return random(1, max_sequence_length + grid_h * grid_w, 8), *ids


def ernie_image():
    transformer = ErnieImageTransformer2DModel(
        hidden_size=32,
        num_attention_heads=2,
        num_layers=1,
        ffn_hidden_size=32,
        in_channels=4 * CHANNELS,
        out_channels=4 * CHANNELS,
        text_in_dim=8,
        rope_axes_dim=(8, 4, 4),
    )
    components = {
        "transformer": transformer,
        "scheduler": FlowMatchEulerDiscreteScheduler(),
        **without_text_encoder(),
    }
    call = {name: [each[0]] for name, each in prompt().items()}
    return ErnieImagePipeline, components, {**call, **SIZE, **STEPS}


def qwen_image():
    transformer = QwenImageTransformer2DModel(
        in_channels=4 * CHANNELS,
        out_channels=CHANNELS,
        num_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=8,
        axes_dims_rope=(8, 4, 4),
    )
    components = {
        "transformer": transformer,
        "scheduler": FlowMatchEulerDiscreteScheduler(),
        **without_text_encoder(),
    }
    masks = {f"{prefix}prompt_embeds_mask": torch.ones(1, 4, dtype=torch.long) for prefix in ("", "negative_")}
    return QwenImagePipeline, components, {**prompt(), **masks, **SIZE, **STEPS}


def qwen_image_img2img():
    _, components, call = qwen_image()
    return QwenImageImg2ImgPipeline, components, {**call, "image": image(), "strength": 1.0}


def krea2():
    transformer = Krea2Transformer2DModel(
        in_channels=4 * CHANNELS,
        num_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=16,
        timestep_embed_dim=8,
        text_hidden_dim=8,
        num_text_layers=2,
        text_num_attention_heads=2,
        text_num_key_value_heads=1,
        text_intermediate_size=8,
        num_layerwise_text_blocks=1,
        num_refiner_text_blocks=1,
        axes_dims_rope=(4, 6, 6),
    )
    components = {
        "transformer": transformer,
        "scheduler": FlowMatchEulerDiscreteScheduler(),
        **without_text_encoder(),
    }
    call = {}
    for prefix in ("", "negative_"):
        call[f"{prefix}prompt_embeds"] = random(1, 4, 2, 8) + len(prefix)
        call[f"{prefix}prompt_embeds_mask"] = torch.ones(1, 4, dtype=torch.bool)
    return Krea2Pipeline, components, {**call, **SIZE, **STEPS}


def glm_image():
    transformer = GlmImageTransformer2DModel(
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        text_embed_dim=8,
        time_embed_dim=8,
        condition_dim=4,
        prior_vq_quantizer_codebook_size=16,
    )
    components = {
        "transformer": transformer,
        "scheduler": FlowMatchEulerDiscreteScheduler(),
        "processor": None,
        "vision_language_encoder": None,
        **without_text_encoder(),
    }
    prior = torch.tensor([[1, 5, 2, 7]])
    return GlmImagePipeline, components, {**prompt(), **STEPS, "height": 128, "width": 128, "prior_token_ids": prior}


def ovis_image():
    transformer = OvisImageTransformer2DModel(
        in_channels=4 * CHANNELS,
        out_channels=4 * CHANNELS,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=8,
        axes_dims_rope=(4, 4, 8),
    )
    components = {
        "transformer": transformer,
        "scheduler": FlowMatchEulerDiscreteScheduler(),
        **without_text_encoder(),
    }
    return OvisImagePipeline, components, {**prompt(), **SIZE, **STEPS, "negative_prompt": None}


def kandinsky5():
    transformer = Kandinsky5Transformer3DModel(
        in_visual_dim=CHANNELS,
        in_text_dim=8,
        in_text_dim2=8,
        time_dim=8,
        out_visual_dim=CHANNELS,
        model_dim=16,
        ff_dim=16,
        num_text_blocks=1,
        num_visual_blocks=1,
        axes_dims=(4, 2, 2),
    )
    components = {
        "transformer": transformer,
        "scheduler": FlowMatchEulerDiscreteScheduler(),
        **without_text_encoder(2),
    }
    call = {}
    for prefix in ("", "negative_"):
        call[f"{prefix}prompt_embeds_qwen"] = random(1, 4, 8) + len(prefix)
        call[f"{prefix}prompt_embeds_clip"] = random(1, 8) + len(prefix)
        call[f"{prefix}prompt_cu_seqlens"] = torch.tensor([0, 4])
    return Kandinsky5T2IPipeline, components, {**call, **SIZE, **STEPS}


STOCK_PIPELINES = {
    function.__name__: function
    for function in (
        dit,
        sana,
        sana_sprint,
        sana_sprint_img2img,
        sana_controlnet,
        pixart_alpha,
        pixart_sigma,
        stable_diffusion,
        stable_diffusion_img2img,
        stable_diffusion_xl,
        stable_diffusion_xl_img2img,
        stable_diffusion_3,
        stable_diffusion_3_img2img,
        flux,
        flux_img2img,
        lumina2,
        hidream,
        aura_flow,
        cogview4,
        prx,
        chroma,
        hunyuan_image,
        latent_consistency,
        z_image,
        z_image_img2img,
        flux2,
        flux2_klein,
        ideogram4,
        ernie_image,
        qwen_image,
        qwen_image_img2img,
        krea2,
        glm_image,
        ovis_image,
        kandinsky5,
    )
}
