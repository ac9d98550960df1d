"""The diffusers pipeline of this package, export with its code, and images of any size."""

from .image_processing import PaddingImageProcessor
from .pipeline_tc_dit import TCDiTPipeline
from .remote_code_export import export_with_remote_code

__all__ = ["PaddingImageProcessor", "TCDiTPipeline", "export_with_remote_code"]
