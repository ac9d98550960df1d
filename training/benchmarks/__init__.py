"""Benchmarks found by `python -m tcae_diffusers.training.bench`.

A benchmark is a module here with `DESCRIPTION: str` and `run(arguments: BenchArguments) -> dict`: what was measured, a
value for each name within about `arguments.seconds`, or a table, a row `{column: value}` for each name. Compared
things are measured in turns within one run. One with `BY_NAME_ONLY = True` is not run unless it is named.
"""
