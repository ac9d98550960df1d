"""Models: the TC-AE autoencoder, the diffusion transformer for its latents, and what works on them and on others."""
