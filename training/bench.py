"""Speed tables of this machine: `python -m tcae_diffusers.training.bench`, or `make bench`."""

import importlib
import pkgutil
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import ClassVar

from tcae_diffusers.arguments import Arguments, exit_with_error, option
from tcae_diffusers.command import start_command
from tcae_diffusers.errors import InputError
from tcae_diffusers.training import benchmarks


@dataclass
class BenchArguments(Arguments):
    """
    Measure how fast this machine is.

    Each benchmark is a module of training/benchmarks/ with a DESCRIPTION and a run(seconds). Absolute rates on a
    shared machine vary, so whatever is compared is measured alternately in one run and reported as a ratio.
    """

    group: ClassVar[str] = "Benchmarks"

    names: list[str] = option([], "Benchmarks to run; all of them if none is named.", positional=True)
    list: bool = option(False, "List the benchmarks and stop.")
    seconds: float = option(60.0, "Time for each benchmark in seconds.")
    output: Path | None = option(
        None, "Folder for bench.json, or a path that ends in .json; nothing is written if unset.", metavar="PATH"
    )


def find_benchmarks() -> dict[str, ModuleType]:
    """All benchmarks by name, in alphabetical order."""
    names = sorted(module.name for module in pkgutil.iter_modules(benchmarks.__path__))
    return {name: importlib.import_module(f"{benchmarks.__name__}.{name}") for name in names}


def main(argv: list[str] | None = None) -> int:
    arguments = start_command(BenchArguments, argv)
    try:
        return run(arguments)
    except InputError as error:
        exit_with_error(str(error))


def run(arguments: BenchArguments) -> int:
    available = find_benchmarks()
    unknown = [name for name in arguments.names if name not in available]
    if unknown:
        raise InputError(f"unknown benchmark {', '.join(unknown)}; expected one of {', '.join(available)}")
    if arguments.list:
        for name, module in available.items():
            print(f"{name:24} {module.DESCRIPTION}")
        return 0
    results = {}
    for name in arguments.names or available:
        print(f"== {name}: {available[name].DESCRIPTION}")
        results[name] = available[name].run(arguments.seconds)
        for key, value in results[name].items():
            print(f"   {key:44} {value:.4g}" if isinstance(value, float) else f"   {key:44} {value}")
    if arguments.output:
        from tcae_diffusers.evaluation.results.kinds.bench import BenchResult
        from tcae_diffusers.evaluation.results.provenance import provenance

        BenchResult(benchmarks=results, **provenance(seconds=arguments.seconds)).save(arguments.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
