"""The modules of joint training: the student tokenizer with its head, and the teacher (paper, section 3.3)."""

import copy
from dataclasses import dataclass

import torch
from torch import nn

from ..models.autoencoder_tc import AutoencoderTC, AutoencoderTCEncoder, AutoencoderTCFeatures
from .masked_tokens import MaskedTokens
from .self_distillation_head import SelfDistillationHead

SSL_FEATURES = ("last", "first_stage")


@dataclass
class JointTokenizerOutput:
    """
    Args:
        reconstruction (`torch.Tensor` of shape `(B, 3, H, W)`): Decoded images.
        latent (`torch.Tensor` of shape `(B, c, h, w)`): Un-normalised latent of the reconstructed images.
        class_logits (`torch.Tensor` of shape `(V, B, K)`, *optional*): Of all views, global ones first.
        patch_logits (`torch.Tensor` of shape `(T, K)`, *optional*): Of the masked tokens of the global views.
        class_tokens (`torch.Tensor` of shape `(2, B, D)`, *optional*): Of the global views, before the head.
        kl (`torch.Tensor`, *optional*): Divergence of a sampled latent, for autoencoders that have one.
    """

    reconstruction: torch.Tensor
    latent: torch.Tensor
    class_logits: torch.Tensor | None = None
    patch_logits: torch.Tensor | None = None
    class_tokens: torch.Tensor | None = None
    kl: torch.Tensor | None = None


def select_tokens(features: AutoencoderTCFeatures, place: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Class token `(B, D)` and patch tokens `(B, N, D)` at `"last"` or `"first_stage"`."""
    if place == "last":
        return features.class_token, features.last
    if place == "first_stage":
        return features.first_stage_class_token, features.first_stage
    raise ValueError(f"self-supervision attaches at {place!r}; expected one of {', '.join(SSL_FEATURES)}")


class JointTokenizer(nn.Module):
    """
    The student: autoencoder, self-distillation head and mask token, one `forward` for all of a step's passes, so that
    a distributed wrapper sees every parameter once.

    Args:
        autoencoder ([`AutoencoderTC`]): The tokenizer; what is saved at the end.
        head ([`SelfDistillationHead`], *optional*): `None` trains reconstruction alone (the ablation without SSL).
        place (`str`, defaults to `"last"`): Which tokens the head reads, see [`select_tokens`].
    """

    def __init__(self, autoencoder: AutoencoderTC, head: SelfDistillationHead | None = None, place: str = "last"):
        super().__init__()
        if place not in SSL_FEATURES:
            raise ValueError(f"place is {place!r}; expected one of {', '.join(SSL_FEATURES)}")
        self.autoencoder = autoencoder
        self.head = head
        self.place = place
        # Zero, as in the iBOT release: before training a masked patch is a patch that says nothing.
        masks = head is not None and head.patch_out_dim is not None
        self.mask_token = nn.Parameter(torch.zeros(autoencoder.config.hidden_size)) if masks else None

    def forward(
        self,
        pixel_values: torch.Tensor,
        global_crops: torch.Tensor | None = None,
        local_crops: torch.Tensor | None = None,
        token_mask: torch.Tensor | None = None,
        masked_tokens: MaskedTokens | None = None,
    ) -> JointTokenizerOutput:
        """
        Args:
            pixel_values (`torch.Tensor` of shape `(B, 3, H, W)`): Images to reconstruct, in [-1, 1].
            global_crops (`torch.Tensor` of shape `(2, B, 3, h, w)`, *optional*): View-major, in [-1, 1].
            local_crops (`torch.Tensor` of shape `(L, B, 3, h', w')`, *optional*): View-major, in [-1, 1].
            token_mask (`torch.BoolTensor` of shape `(2, B, h / p, w / p)`, *optional*): Hidden patches of the global
                crops; not given for a method without masks (DINO).
            masked_tokens ([`MaskedTokens`], *optional*): The same mask on the grid of the tokens that the head reads.
        """
        encoder = self.autoencoder.encoder
        if self.head is None:
            features = encoder(pixel_values)
            return JointTokenizerOutput(self.autoencoder.decoder(features.latent), features.latent)

        views = global_crops.flatten(0, 1)
        view_mask = None if token_mask is None else token_mask.flatten(0, 1)
        if views.shape[1:] == pixel_values.shape[1:]:
            # Equal sizes share one pass: fewer, larger products.
            mask = view_mask
            if view_mask is not None:
                mask = torch.cat([view_mask.new_zeros((pixel_values.shape[0], *view_mask.shape[1:])), view_mask])
            both = encoder(torch.cat([pixel_values, views]), mask, self.mask_token)
            latent = both.latent[: pixel_values.shape[0]]
            class_tokens, patch_tokens = (
                tokens[pixel_values.shape[0] :] for tokens in select_tokens(both, self.place)
            )
        else:
            latent = encoder(pixel_values).latent
            class_tokens, patch_tokens = select_tokens(encoder(views, view_mask, self.mask_token), self.place)

        predicts_patches = self.head.patch_out_dim is not None
        masked = masked_tokens.gather(patch_tokens) if predicts_patches else None
        all_class_tokens = [class_tokens]
        if local_crops is not None:
            all_class_tokens.append(select_tokens(encoder(local_crops.flatten(0, 1)), self.place)[0])
        class_logits, patch_logits = self.head(
            torch.cat(all_class_tokens).unflatten(0, (-1, pixel_values.shape[0])), masked
        )
        return JointTokenizerOutput(
            reconstruction=self.autoencoder.decoder(latent),
            latent=latent,
            class_logits=class_logits,
            patch_logits=patch_logits,
            class_tokens=class_tokens.unflatten(0, (2, -1)),
        )


class Teacher(nn.Module):
    """
    Moving average of the student's encoder and head, without gradient; update it with [`teacher.update_teacher`].

    Args:
        student ([`JointTokenizer`]): Unwrapped; copied as it stands.
    """

    def __init__(self, student: JointTokenizer):
        super().__init__()
        self.encoder: AutoencoderTCEncoder = copy.deepcopy(student.autoencoder.encoder)
        self.head: SelfDistillationHead = copy.deepcopy(student.head)
        self.place = student.place
        self.requires_grad_(False)
        self.eval()

    @torch.no_grad()
    def forward(
        self, global_crops: torch.Tensor, masked_tokens: MaskedTokens | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """
        Args:
            global_crops (`torch.Tensor` of shape `(2, B, 3, h, w)`): The student's views, nothing hidden.
            masked_tokens ([`MaskedTokens`], *optional*): Where the student's are hidden.

        Returns:
            Class logits `(2, B, K)` and patch logits `(T, K)`, or `None` for a method without masked tokens.
        """
        class_tokens, patch_tokens = select_tokens(self.encoder(global_crops.flatten(0, 1)), self.place)
        masked = masked_tokens.gather(patch_tokens) if self.head.patch_out_dim is not None else None
        return self.head(class_tokens.unflatten(0, (2, -1)), masked)
