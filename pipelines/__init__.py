"""The diffusers pipeline of this project and what stands around it: export, image padding."""

from .pipeline_tc_dit import TCDiTPipeline

__all__ = ["TCDiTPipeline"]
