"""Configurations for `accelerate launch --config_file`, one per way to use several GPUs."""
