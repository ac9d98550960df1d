"""
Minutes of training until a held-out PSNR, and a Fréchet distance of samples, are reached: several recipes, each with
several seeds.

Two processes of one thread each run at the same time, each with a recipe and a seed of its own, and as soon as one
ends the next begins, so that all of them share the machine with a process like themselves. That uses two cores better
than two threads, of which one waits for the other after every small product, and better than taking turns, where one
core is idle. Beside the wall clock stand CPU seconds, which hardly change when something else runs on the machine.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tcae_diffusers.errors import InputError
from tcae_diffusers.files import write_text
from tcae_diffusers.trainer.signals import StopSignal
from tcae_diffusers.training.bench_arguments import BenchArguments
from tcae_diffusers.training.time_to_quality.recipes import Recipe, parse_recipes
from tcae_diffusers.training.time_to_quality.records import (
    format_record,
    level_name,
    read_record,
    record_path,
    require_same_settings,
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
                require_same_settings(path, settings_of(recipe, arguments, seed))
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
    print(f"{path}: " + ", ".join(_crossing_in_words(*each) for each in record["crossings"].items()), flush=True)


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
    """Measure units, `--processes` at a time, each in a process of one thread whose output goes to a `.log` file."""
    arguments.records.mkdir(parents=True, exist_ok=True)
    waiting = list(units)
    running: dict[subprocess.Popen, Unit] = {}
    with StopSignal() as stop:
        try:
            while waiting or running:
                while waiting and len(running) < arguments.processes:
                    unit = waiting.pop(0)
                    running[_start(arguments, unit)] = unit
                time.sleep(0.2)
                if stop.received:
                    raise SystemExit(f"{stop.reason}: {len(waiting) + len(running)} left; run the same command again")
                for process in [process for process in running if process.poll() is not None]:
                    _finish(arguments, running.pop(process), process.returncode)
        finally:
            for process in running:
                process.terminate()
            for process in running:
                process.wait()


def _log(arguments: BenchArguments, unit: Unit) -> Path:
    return record_path(arguments.records, unit[0].name, unit[1]).with_suffix(".log")


def _start(arguments: BenchArguments, unit: Unit) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with open(_log(arguments, unit), "wb") as log:
        return subprocess.Popen(
            command_of_unit(arguments, *unit), stdout=log, stderr=subprocess.STDOUT, env=environment
        )


def _finish(arguments: BenchArguments, unit: Unit, returncode: int) -> None:
    """
    Say what was measured.

    Raises:
        InputError: if the process failed; the message is its last line.
    """
    recipe, seed = unit
    path = record_path(arguments.records, recipe.name, seed)
    if returncode:
        log = _log(arguments, unit)
        last = (log.read_text(errors="replace").strip().splitlines() or ["no output"])[-1]
        raise InputError(f"{recipe.name}, seed {seed} ended with code {returncode}, see {log}: {last}")
    crossings = read_record(path)["crossings"]
    print(f"{path}: " + ", ".join(_crossing_in_words(*each) for each in crossings.items()), flush=True)
