"""Minutes of training until a quality is reached: what [`tcae_diffusers.training.benchmarks.time_to_quality`] runs."""
