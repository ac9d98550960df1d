"""ConsistencyDecoderVAE scales its latent when it decodes, for a network that was trained so."""

from .adapter import AutoencoderAdapter


class ConsistencyDecoderAdapter(AutoencoderAdapter):
    """Its decoder takes the scaling factor that it was trained with, so no other can be set."""

    model_classes = ("ConsistencyDecoderVAE",)

    @property
    def scaling_entries(self) -> tuple[str, ...]:
        return ()
