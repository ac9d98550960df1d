"""Speed tables of this machine.

    python -m tcae_diffusers.training.bench

Each benchmark is a module of `training/benchmarks/` with a `DESCRIPTION` and a `run(seconds)`.

Absolute rates of a shared machine wander; whatever is compared is measured interleaved in one run and reported as a
ratio.
"""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import sys
from pathlib import Path
from types import ModuleType

from tcae_diffusers.errors import InputError
from tcae_diffusers.evaluation.results.provenance import provenance
from tcae_diffusers.files import write_json
from tcae_diffusers.training import benchmarks


def find_benchmarks() -> dict[str, ModuleType]:
    """All benchmarks by name, in alphabetical order."""
    names = sorted(module.name for module in pkgutil.iter_modules(benchmarks.__path__))
    return {name: importlib.import_module(f"{benchmarks.__name__}.{name}") for name in names}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", nargs="*", help="which benchmarks (default: all); --list shows them")
    parser.add_argument("--list", action="store_true", help="list the benchmarks and stop")
    parser.add_argument(
        "--seconds", type=float, default=60.0, help="time budget of each benchmark (default: %(default)s)"
    )
    parser.add_argument("--output", type=Path, help="write the tables as JSON to this file")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    args = parser.parse_args(argv)
    try:
        return run(args)
    except InputError as error:
        parser.error(str(error))


def run(args: argparse.Namespace) -> int:
    available = find_benchmarks()
    unknown = [name for name in args.names if name not in available]
    if unknown:
        raise InputError(f"unknown benchmark {', '.join(unknown)}; expected of {', '.join(available)}")
    if args.list:
        for name, module in available.items():
            print(f"{name:24} {module.DESCRIPTION}")
        return 0
    results = {}
    for name in args.names or available:
        print(f"== {name}: {available[name].DESCRIPTION}")
        results[name] = available[name].run(args.seconds)
        for key, value in results[name].items():
            print(f"   {key:44} {value:.4g}" if isinstance(value, float) else f"   {key:44} {value}")
    if args.output:
        write_json(args.output, {"kind": "bench", "benchmarks": results, **provenance(seconds=args.seconds)})
    return 0


if __name__ == "__main__":
    sys.exit(main())
