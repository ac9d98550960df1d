"""
Self-supervised methods that train the tokens of a tokenizer in addition to reconstruction.

A method is one file in `methods/` with the name that `--ssl` takes, and a function `build(arguments, adapter,
options)` that returns a [`method.SelfSupervision`]; `options` is its own dataclass `Options`, filled from
`--ssl_options`, or `None` without one. No other file needs to change.
"""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InputError

if TYPE_CHECKING:
    from ..charts import Chart
    from ..models.adapters import AutoencoderAdapter
    from .arguments import SelfSupervisionArguments
    from .method import SelfSupervision


def available_methods() -> tuple[str, ...]:
    """Names of the available methods, without importing them."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules([str(Path(__file__).parent / "methods")])))


def method_charts() -> list[Chart]:
    """Charts of what the methods log, each once even if several methods share it."""
    from .method import SelfSupervision

    charts: list[Chart] = []
    for name in available_methods():
        for part in vars(importlib.import_module(f"{__name__}.methods.{name}")).values():
            if isinstance(part, type) and issubclass(part, SelfSupervision):
                charts += [chart for chart in part.charts if chart not in charts]
    return charts


def build_method(arguments: SelfSupervisionArguments, adapter: AutoencoderAdapter) -> SelfSupervision:
    """
    The method that `arguments.ssl` names, for one autoencoder.

    Raises:
        InputError: unknown method, options that do not fit, or an autoencoder without the tokens that it needs.
    """
    if arguments.ssl not in available_methods():
        raise InputError(f"--ssl {arguments.ssl} is unknown; expected one of {', '.join(available_methods())}")
    from .options import read_options

    method = importlib.import_module(f"{__name__}.methods.{arguments.ssl}")
    options = read_options(getattr(method, "Options", None), arguments.ssl_options, arguments.ssl)
    return method.build(arguments, adapter, options)
