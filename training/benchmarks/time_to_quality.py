"""
Minutes of training until a held-out PSNR, and a Fréchet distance of samples, are reached: several recipes, each with
several seeds.

Two processes of one thread each run at the same time, each with a recipe and a seed of its own, so that all of them
share the machine with a process like themselves. Beside the wall clock stand CPU seconds, which hardly change when
something else runs on the machine.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from tcae_diffusers.files import write_text
from tcae_diffusers.training.bench_arguments import BenchArguments
from tcae_diffusers.training.recorded_settings import require_same_settings
from tcae_diffusers.training.side_by_side import Job, run_side_by_side
from tcae_diffusers.training.time_to_quality.recipes import Recipe, parse_recipes
from tcae_diffusers.training.time_to_quality.records import (
    format_record,
    level_name,
    read_record,
    record_path,
)
from tcae_diffusers.training.time_to_quality.table import table
from tcae_diffusers.training.time_to_quality.unit import Interrupted, measure, settings_of

DESCRIPTION = "minutes of training to a held-out PSNR and a Fréchet distance, recipes against each other, over seeds"
BY_NAME_ONLY = True

Unit = tuple[Recipe, int]


def run(arguments: BenchArguments) -> dict[str, dict[str, str]]:
    """
    Train what has no record yet, then compare the records of all recipes and seeds.

    Raises:
        InputError: recipes that cannot be trained or compared, or a record that was measured with other settings.
        SystemExit: training was interrupted or failed; the records so far stay.
    """
    recipes = parse_recipes(arguments)
    missing = units_without_record(arguments, recipes)
    if len(missing) == 1:
        measure_here(arguments, *missing[0])
    elif missing:
        measure_in_processes(arguments, missing)
    records = {
        recipe.name: [read_record(record_path(arguments.records, recipe.name, seed)) for seed in arguments.seeds]
        for recipe in recipes
    }
    levels = [level_name(level) for level in arguments.psnr]
    if arguments.gfd is not None:
        levels.append(level_name(arguments.gfd, "gFD"))
    return table(records, levels)


def units_without_record(arguments: BenchArguments, recipes: list[Recipe]) -> list[Unit]:
    """Seed by seed, so that those that are compared train at the same time; who begins, changes with the seed."""
    missing = []
    for number, seed in enumerate(arguments.seeds):
        first = number % len(recipes)
        for recipe in recipes[first:] + recipes[:first]:
            path = record_path(arguments.records, recipe.name, seed)
            if path.exists() and not arguments.rerun:
                remedy = "choose another name or --records, or pass --rerun to measure it again"
                now = settings_of(recipe, arguments, seed)
                require_same_settings(path, read_record(path)["settings"], now, remedy)
            else:
                missing.append((recipe, seed))
    return missing


def measure_here(arguments: BenchArguments, recipe: Recipe, seed: int) -> None:
    """Measure one unit in this process and write its record."""
    try:
        record = measure(recipe, arguments, seed)
    except Interrupted:
        raise SystemExit(f"{recipe.name}, seed {seed}: interrupted; run the same command again") from None
    path = record_path(arguments.records, recipe.name, seed)
    write_text(path, format_record(record))
    report(path)


def _crossing_in_words(level: str, crossing: dict[str, float] | None) -> str:
    if crossing is None:
        return f"{level} not reached"
    return f"{level} after {crossing['cpu_s'] / 60:.2f} CPU min ({crossing['wall_s'] / 60:.2f} on the wall)"


def command_of_unit(arguments: BenchArguments, recipe: Recipe, seed: int) -> list[str]:
    """This benchmark for one recipe and seed, as a command."""
    options: dict[str, Any] = {
        "recipe": [recipe.text()],
        "seeds": [seed],
        "psnr": arguments.psnr,
        "gfd": arguments.gfd,
        "dit_config": arguments.dit_config,
        "gfd_samples": arguments.gfd_samples,
        "gfd_reference": arguments.gfd_reference,
        "check_steps": arguments.check_steps,
        "records": arguments.records,
        "rerun": arguments.rerun,
    }
    argv = [sys.executable, "-m", "tcae_diffusers.training.bench", "time_to_quality"]
    for name, value in options.items():
        if value not in (None, []):
            argv += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return argv


def measure_in_processes(arguments: BenchArguments, units: list[Unit]) -> None:
    """Measure units, `--processes` at a time; the output of each goes to a `.log` file beside its record."""
    arguments.records.mkdir(parents=True, exist_ok=True)
    jobs = []
    for recipe, seed in units:
        path = record_path(arguments.records, recipe.name, seed)
        command = command_of_unit(arguments, recipe, seed)
        jobs.append(Job(f"{recipe.name}, seed {seed}", command, path.with_suffix(".log"), path))
    run_side_by_side(jobs, arguments.processes, lambda job: report(job.result))


def report(path: Path) -> None:
    """Say what a record found."""
    crossings = read_record(path)["crossings"]
    print(f"{path}: " + ", ".join(_crossing_in_words(*each) for each in crossings.items()), flush=True)
