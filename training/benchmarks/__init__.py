"""Benchmarks found by `python -m tcae_diffusers.training.bench`.

A benchmark is a module here with `DESCRIPTION: str` and `run(seconds: float) -> dict[str, float | str]`, a flat table
of what was measured within about `seconds`. Compared things are measured in turns within one run.
"""
