"""DiffAugment (Zhao et al., 2020): the same differentiable augmentation for what is real and what is generated."""

import torch
import torch.nn.functional as F

DIFF_AUGMENT_POLICIES = ("color", "translation", "cutout")

TRANSLATION_RATIO = 0.125
CUTOUT_RATIO = 0.5


def _draw(batch: int, generator: torch.Generator | list[torch.Generator], device: torch.device) -> torch.Tensor:
    """`(7, B)` uniform numbers in [0, 1), the same ones whatever the policy is."""
    if isinstance(generator, torch.Generator):
        return torch.rand(batch, 7, generator=generator, device=generator.device).T.to(device, non_blocking=True)
    if len(generator) != batch:
        raise ValueError(f"got {len(generator)} generators for {batch} images; pass one, or one per image")
    return torch.stack([torch.rand(7, generator=g, device=g.device) for g in generator], dim=1).to(
        device, non_blocking=True
    )


def _color(
    images: torch.Tensor, brightness: torch.Tensor, saturation: torch.Tensor, contrast: torch.Tensor
) -> torch.Tensor:
    brightness, saturation, contrast = (u.view(-1, 1, 1, 1) for u in (brightness, saturation, contrast))
    images = images + brightness - 0.5
    grey = images.mean(dim=1, keepdim=True)
    images = (images - grey) * (saturation * 2) + grey
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    return (images - mean) * (contrast + 0.5) + mean


def _translation(images: torch.Tensor, vertical: torch.Tensor, horizontal: torch.Tensor) -> torch.Tensor:
    batch, _, height, width = images.shape
    padded = F.pad(images, (1, 1, 1, 1))

    def sources(uniform: torch.Tensor, size: int) -> torch.Tensor:
        reach = int(size * TRANSLATION_RATIO + 0.5)
        shift = (uniform * (2 * reach + 1)).floor().long() - reach
        # Places outside the image fall on the border of zeros.
        return (torch.arange(size, device=images.device) + shift[:, None] + 1).clamp(0, size + 1)

    rows, columns = sources(vertical, height), sources(horizontal, width)
    first = torch.arange(batch, device=images.device).view(-1, 1, 1)
    return padded.permute(0, 2, 3, 1)[first, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _cutout(images: torch.Tensor, vertical: torch.Tensor, horizontal: torch.Tensor) -> torch.Tensor:
    def hole(uniform: torch.Tensor, size: int) -> torch.Tensor:
        extent = int(size * CUTOUT_RATIO + 0.5)
        # The centre may lie anywhere, so a hole may be cut off by the border.
        start = (uniform * (size + 1 - extent % 2)).floor() - extent // 2
        place = torch.arange(size, device=images.device)
        return (place >= start[:, None]) & (place < start[:, None] + extent)

    rows, columns = hole(vertical, images.shape[2]), hole(horizontal, images.shape[3])
    return images * ~(rows[:, :, None] & columns[:, None, :]).unsqueeze(1)


def diff_augment(
    images: torch.Tensor, policy: tuple[str, ...], generator: torch.Generator | list[torch.Generator]
) -> torch.Tensor:
    """
    Args:
        images (`torch.Tensor` of shape `(B, 3, H, W)`): in [-1, 1]; the result may leave that range.
        policy (`tuple[str, ...]`):
            Any of `"color"` (brightness, saturation, contrast), `"translation"` (up to an eighth of the side, zeros
            come in) and `"cutout"` (a square of half the side becomes zero), applied in this order.
        generator (`torch.Generator` or a list of one per image):
            The only source of randomness. One per image, seeded by (seed, step, slot), makes the result independent of
            how images are spread over ranks.

    Raises:
        ValueError: an unknown policy, or another number of generators than images.
    """
    unknown = [name for name in policy if name not in DIFF_AUGMENT_POLICIES]
    if unknown:
        raise ValueError(f"DiffAugment policy {unknown[0]!r} is unknown; expected {', '.join(DIFF_AUGMENT_POLICIES)}")
    brightness, saturation, contrast, down, right, hole_row, hole_column = _draw(
        images.shape[0], generator, images.device
    )
    if "color" in policy:
        images = _color(images, brightness, saturation, contrast)
    if "translation" in policy:
        images = _translation(images, down, right)
    if "cutout" in policy:
        images = _cutout(images, hole_row, hole_column)
    return images
