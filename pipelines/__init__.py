"""The diffusers pipeline of this project and what stands around it: export with code, images of any size."""

from .image_processing import PaddingImageProcessor
from .pipeline_tc_dit import TCDiTPipeline
from .remote_code_export import export_with_remote_code

__all__ = ["PaddingImageProcessor", "TCDiTPipeline", "export_with_remote_code"]
