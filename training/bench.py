"""Speed tables of this machine: `python -m tcae_diffusers.training.bench`, or `make bench`."""

import importlib
import pkgutil
import sys
from types import ModuleType
from typing import Any

from tcae_diffusers.arguments import exit_with_error
from tcae_diffusers.command import start_command
from tcae_diffusers.errors import InputError
from tcae_diffusers.training import benchmarks
from tcae_diffusers.training.bench_arguments import BenchArguments
from tcae_diffusers.training.markdown_tables import format_value, markdown_table


def find_benchmarks() -> dict[str, ModuleType]:
    """All benchmarks by name, in alphabetical order."""
    names = sorted(module.name for module in pkgutil.iter_modules(benchmarks.__path__))
    return {name: importlib.import_module(f"{benchmarks.__name__}.{name}") for name in names}


def is_by_name_only(module: ModuleType) -> bool:
    """Whether a benchmark takes too long, or answers another question, to be run where none is named."""
    return getattr(module, "BY_NAME_ONLY", False)


def format_result(result: dict[str, Any]) -> str:
    """What a benchmark returned: a line for each figure, or a Markdown table where its values are rows."""
    if result and all(isinstance(row, dict) for row in result.values()):
        return markdown_table(result)
    return "\n".join(f"   {key:44} {format_value(value)}" for key, value in result.items())


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
            print(f"{name:24} {module.DESCRIPTION}" + (" (by name only)" if is_by_name_only(module) else ""))
        return 0
    if arguments.output:
        from tcae_diffusers.evaluation.results.reading import refuse_other_json

        refuse_other_json(arguments.output)
    results = {}
    for name in arguments.names or [name for name, module in available.items() if not is_by_name_only(module)]:
        print(f"== {name}: {available[name].DESCRIPTION}")
        results[name] = available[name].run(arguments)
        print(format_result(results[name]))
    if arguments.output:
        from tcae_diffusers.evaluation.results.kinds.bench import BenchResult
        from tcae_diffusers.evaluation.results.provenance import provenance

        BenchResult(benchmarks=results, **provenance(seconds=arguments.seconds)).save(arguments.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
