"""The shape of a latent space: does it use its channels, how does it move with the image, what does noise cost?"""

from __future__ import annotations

from tcae_diffusers.metrics.latent_diagnostics import evaluate_latents
from tcae_diffusers.metrics.reconstruction import check_reconstruction_size
from tcae_diffusers.models.adapters import load_autoencoder

from ..arguments.latents import LatentsArguments
from ..pictures.chosen_images import spread_indices
from ..pictures.component_pictures import component_sheet
from ..results.kinds.autoencoder import describe_autoencoder, describe_images
from ..results.kinds.latents import LatentsResult
from ..results.provenance import provenance

_PICTURE = "latent_components.png"


def run(arguments: LatentsArguments) -> LatentsResult:
    """
    Measures the latent space of an autoencoder.

    Raises:
        InputError: If the model or its images cannot be used; the message says why.
    """
    state, device = arguments.process_state(), arguments.chosen_device()
    model = load_autoencoder(arguments.autoencoder, device)
    images = arguments.open_images(model)
    height, width = images[0].shape[:2]
    check_reconstruction_size(model, height, width)
    network = arguments.network_if_any(device)
    found = evaluate_latents(model, images, network, arguments.batch_size, arguments.noise_levels, seed=arguments.seed)
    result = LatentsResult(
        figures=found.figures,
        autoencoder=describe_autoencoder(arguments.autoencoder, model),
        data={**describe_images(arguments.data, images), "height": height, "width": width},
        channels=found.channels,
        equivariance=found.equivariance,
        noise=found.noise,
        picture=_PICTURE,
        **provenance(seed=arguments.seed, resolution=height, ranks=state.num_processes),
    )
    if state.is_main_process:
        result.files[_PICTURE], result.picture_rows = component_sheet(model, images, spread_indices(images, 12))
    return result
