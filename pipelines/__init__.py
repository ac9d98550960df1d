"""The diffusers pipeline of this package, plain and in blocks, export with its code, and images of any size."""

from .image_processing import PaddingImageProcessor
from .modular_blocks_tc_dit import AutoencoderReconstructionBlocks, TCDiTBlocks
from .pipeline_tc_dit import TCDiTPipeline
from .remote_code_export import export_with_remote_code

__all__ = [
    "AutoencoderReconstructionBlocks",
    "PaddingImageProcessor",
    "TCDiTBlocks",
    "TCDiTPipeline",
    "export_with_remote_code",
]
