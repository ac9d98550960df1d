"""A SAM 2 of random weights that is sure of what it finds."""

from pathlib import Path

import torch
import transformers
from transformers import (
    Sam2Config,
    Sam2HieraDetConfig,
    Sam2MaskDecoderConfig,
    Sam2Model,
    Sam2PromptEncoderConfig,
    Sam2VisionConfig,
)

SIDE, WIDTH = 128, 32


def save_tiny_segmenter(folder: Path) -> Path:
    """Model and image processor, saved to `folder`."""
    backbone = Sam2HieraDetConfig(
        hidden_size=12,
        num_attention_heads=1,
        image_size=[SIDE, SIDE],
        blocks_per_stage=[1, 1, 2, 1],
        embed_dim_per_stage=[12, 24, 48, 96],
        num_attention_heads_per_stage=[1, 2, 4, 8],
        window_size_per_stage=[8, 4, 8, 4],
        global_attention_blocks=[3],
    )
    vision = Sam2VisionConfig(
        backbone_config=backbone,
        backbone_channel_list=[96, 48, 24, 12],
        backbone_feature_sizes=[[32, 32], [16, 16], [8, 8]],
        fpn_hidden_size=WIDTH,
    )
    decoder = Sam2MaskDecoderConfig(
        hidden_size=WIDTH,
        mlp_dim=WIDTH,
        num_hidden_layers=1,
        num_attention_heads=2,
        iou_head_hidden_dim=WIDTH,
        iou_head_depth=2,
    )
    torch.manual_seed(0)
    model = Sam2Model(
        Sam2Config(
            vision_config=vision,
            prompt_encoder_config=Sam2PromptEncoderConfig(hidden_size=WIDTH, image_size=SIDE),
            mask_decoder_config=decoder,
        )
    )
    with torch.no_grad():
        # Masks below a predicted overlap of 0.88 are dropped, and those that another threshold would change.
        model.mask_decoder.iou_prediction_head.proj_out.bias += 10
        for mlp in model.mask_decoder.output_hypernetworks_mlps:
            mlp.proj_out.weight *= 1e8
            mlp.proj_out.bias *= 1e8
    model.save_pretrained(folder)
    # Transformers 5.0 calls it fast.
    name = "Sam2ImageProcessor"
    processor = getattr(transformers, name if hasattr(transformers, name) else f"{name}Fast")
    processor(
        size={"height": SIDE, "width": SIDE}, mask_size={"height": SIDE // 4, "width": SIDE // 4}
    ).save_pretrained(folder)
    return folder
