"""Options of the commands of `python -m tcae_diffusers.evaluation`; they import nothing that takes seconds."""
