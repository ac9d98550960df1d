"""A trained AutoencoderTC with smaller patches: what it has learnt on few tokens, to go on with on many."""

import torch
from torch.nn import functional as F

from ..errors import InputError
from .tcae.autoencoder_tc import AutoencoderTC


def with_finer_patches(model: AutoencoderTC, patch_size: int) -> AutoencoderTC:
    """
    The same autoencoder with smaller patches and as many times more tokens, for a latent of the same shape.

    Each token gives way to `k x k` tokens, `k` being how many times smaller the patches are. Kernels are resampled so
    that an image of even patches has the embedding that it had, `k x k` equal tokens have the latent that one of them
    had, and a latent is decoded to `k x k` equal tokens. What only a difference within a patch can tell is averaged
    and has to be learnt again: a start for training, not a finished model. (FlexiViT, arXiv 2212.08013, resamples
    patch embeddings by a pseudo-inverse, so that one model serves several patch sizes.)

    Args:
        model ([`AutoencoderTC`]): Not changed.
        patch_size (`int`): Of which the patch size of `model` is a multiple.

    Returns:
        [`AutoencoderTC`] in the dtype, on the device, and with the statistics of `model`.

    Raises:
        InputError: The patch size of `model` is no multiple of `patch_size`.
    """
    coarse = model.config.patch_size
    if type(patch_size) is not int or patch_size < 1 or coarse % patch_size:
        raise InputError(
            f"patch_size {patch_size}: patches of a trained model can only be divided; use a divisor of {coarse}"
        )
    k = coarse // patch_size
    finer = AutoencoderTC.from_config(model.config, patch_size=patch_size)
    state = dict(model.state_dict())
    embedding = "encoder.patch_embed.weight"
    # Summed: a smaller patch has fewer pixels.
    state[embedding] = F.avg_pool2d(state[embedding], k) * k**2
    for name in ("decoder.proj_out.weight", "decoder.proj_out.bias"):
        state[name] = _averaged(state[name], coarse, k)
    factor = model.decoder.final_factor
    for name in ("decoder.from_latent.linear_out.weight", "decoder.from_latent.linear_out.bias"):
        state[name] = _repeated(state[name], factor, k)
    joined = "encoder.to_latent.linear_in.weight"
    state[joined] = _repeated(state[joined].T, factor, k).T / k**2
    finer.load_state_dict(state)
    return finer.to(model.device, model.dtype).train(model.training)


def _averaged(rows: torch.Tensor, side: int, k: int) -> torch.Tensor:
    """Rows `(side * side * C, ...)` of a square averaged over squares of `k x k` in it."""
    inner = side // k
    parts = rows.unflatten(0, (inner, k, inner, k, -1))
    return parts.mean((1, 3)).flatten(0, 2)


def _repeated(rows: torch.Tensor, side: int, k: int) -> torch.Tensor:
    """Rows `(side * side * C, ...)` of a square, each position of it `k x k` times."""
    parts = rows.unflatten(0, (side, side, -1))
    return parts.repeat_interleave(k, 0).repeat_interleave(k, 1).flatten(0, 2)
