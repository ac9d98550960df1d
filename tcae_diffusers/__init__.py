"""
Deep-compression tokenizers for diffusers: the TC-AE autoencoder, its training, its pipeline and its evaluation.

Importing this package imports neither torch nor diffusers: its names are imported when they are used, and diffusers
knows its classes from the moment that diffusers is imported, whichever of the two comes first.
"""

import importlib
from typing import TYPE_CHECKING, Any

from .registration import missing_in_diffusers, register_when_diffusers_is_imported
from .version import __version__

if TYPE_CHECKING:
    from .models.autoencoder_tc_presets import AUTOENCODER_TC_PRESETS
    from .models.tcae.autoencoder_tc import AutoencoderTC
    from .models.tcae.autoencoder_tc_wrappers import AutoencoderTCWithBatchNorm, AutoencoderTCWithFrames
    from .models.tcae.transformer_tc_dit import TC_DIT_PRESETS, TCDiTTransformer2DModel
    from .pipelines.modular_blocks_tc_dit import AutoencoderReconstructionBlocks, TCDiTBlocks
    from .pipelines.pipeline_tc_dit import TCDiTPipeline

__all__ = [
    "AUTOENCODER_TC_PRESETS",
    "TC_DIT_PRESETS",
    "AutoencoderReconstructionBlocks",
    "AutoencoderTC",
    "AutoencoderTCWithBatchNorm",
    "AutoencoderTCWithFrames",
    "TCDiTBlocks",
    "TCDiTPipeline",
    "TCDiTTransformer2DModel",
    "__version__",
]

_DEFINED_IN = {
    "AUTOENCODER_TC_PRESETS": "models.autoencoder_tc_presets",
    "TC_DIT_PRESETS": "models.tcae.transformer_tc_dit",
    "AutoencoderTC": "models.tcae.autoencoder_tc",
    "AutoencoderTCWithBatchNorm": "models.tcae.autoencoder_tc_wrappers",
    "AutoencoderTCWithFrames": "models.tcae.autoencoder_tc_wrappers",
    "AutoencoderReconstructionBlocks": "pipelines.modular_blocks_tc_dit",
    "TCDiTBlocks": "pipelines.modular_blocks_tc_dit",
    "TCDiTPipeline": "pipelines.pipeline_tc_dit",
    "TCDiTTransformer2DModel": "models.tcae.transformer_tc_dit",
}

register_when_diffusers_is_imported()


def __getattr__(name: str) -> Any:
    """What [PEP 562](https://peps.python.org/pep-0562/) asks for a name that is not there yet."""
    if name not in _DEFINED_IN:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        value = getattr(importlib.import_module(f"{__name__}.{_DEFINED_IN[name]}"), name)
    except ImportError as error:
        if (error.name or "").partition(".")[0] != "diffusers":
            raise
        raise missing_in_diffusers(f"{__name__}.{name}", error) from error
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
