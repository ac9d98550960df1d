"""One module per command of `python -m tcae_diffusers.evaluation`."""
