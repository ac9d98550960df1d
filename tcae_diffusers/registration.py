"""
Makes diffusers know the classes of this package, so that plain `DiffusionPipeline.from_pretrained` finds them.

diffusers resolves the library name of a component in `model_index.json` in three ways: a library on its list, a
module of `diffusers.pipelines`, or a module that the process has imported already; and a repository on the Hub may use
the first two only. So `["tcae", "AutoencoderTC"]` is what a pipeline saves, and it is found through

- `diffusers.AutoencoderTC`, ... : where `DiffusionPipeline` and `AutoModel` look a class name up;
- `diffusers.pipelines.tcae`: where they look a component's library name up, and what the Hub check accepts; it is this
  package itself.

When it saves, diffusers takes `tcae` from the name of the folder that the classes lie in, `models/tcae`.

All of this is by name: no class is imported before it is asked for. diffusers itself takes seconds to import, so this
waits until somebody does.

None of it is a promise of diffusers. So what is needed is tried out when diffusers, and later its loading, is
imported; what is missing is said in one sentence, and everything that does not need it goes on working.
"""

import importlib
import importlib.util
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

# What `make test-versions` tries; README.md states it with the other libraries' ranges.
TESTED_DIFFUSERS = "0.42.1"

LIBRARY_NAME = "tcae"
REGISTERED_CLASSES = (
    "AutoencoderTC",
    "AutoencoderTCWithBatchNorm",
    "AutoencoderTCWithFrames",
    "TCDiTTransformer2DModel",
    "TCDiTPipeline",
    "TCDiTBlocks",
    "AutoencoderReconstructionBlocks",
)
LOADING = "diffusers.pipelines.pipeline_loading_utils"


def register_when_diffusers_is_imported() -> None:
    """Calls [`register_with_diffusers`] after the first import of diffusers, and has its loading tried out after the
    first import of that; now if that has been."""
    _call_after_import("diffusers", lambda diffusers: register_with_diffusers())
    _call_after_import(LOADING, check_loading)


def register_with_diffusers() -> ModuleType:
    """
    Registers this package's classes with diffusers, which it imports; harmless when called again.

    Returns:
        The module that has the classes as attributes, `diffusers.pipelines.tcae`.

    Raises:
        ImportError: if diffusers already has a class of one of our names, which we must not replace silently.

    Warns:
        RuntimeWarning: if this diffusers has no place to register them, or loads pipelines in another module.
    """
    import diffusers
    import diffusers.pipelines

    for class_name in set(dir(diffusers)).intersection(REGISTERED_CLASSES):
        defined_in = getattr(diffusers, class_name).__module__
        if not defined_in.startswith(f"{__package__}."):
            raise ImportError(
                f"diffusers {diffusers.__version__} has its own {class_name} ({defined_in}), which this "
                f"package would hide; install a tested version: {_remedy()}."
            )

    package = importlib.import_module(__package__)
    probe = f"__{LIBRARY_NAME}_probe__"

    def class_of_this_package(name: str) -> Any:
        if name in REGISTERED_CLASSES:
            return getattr(package, name)
        if name == probe:
            return package
        raise AttributeError(f"module 'diffusers' has no attribute {name!r}")

    # Asked for a name that the module does not have (PEP 562), before diffusers' own way of importing what is used.
    diffusers.__getattr__ = class_of_this_package
    sys.modules[f"diffusers.pipelines.{LIBRARY_NAME}"] = package
    setattr(diffusers.pipelines, LIBRARY_NAME, package)
    if getattr(diffusers, probe, None) is not package:
        _warn_of_missing("a top-level module that asks its `__getattr__` for classes it does not have")
    if importlib.util.find_spec(LOADING) is None:
        _warn_of_missing(f"the module {LOADING}, which looks up the classes of a pipeline")
    return package


def check_loading(loading: ModuleType) -> None:
    """
    Tries out, on `diffusers.pipelines.pipeline_loading_utils`, what finds the classes of this package by name.

    Warns:
        RuntimeWarning: names the first function that is missing or no longer finds them.
    """
    package = importlib.import_module(__package__)
    # An attribute that costs nothing stands for the classes, and a class of their module's name for their instances.
    component = type(REGISTERED_CLASSES[0], (), {"__module__": f"{__package__}.models.{LIBRARY_NAME}.model"})()
    expected: dict[str, tuple[tuple[Any, ...], Callable[[Any], bool]]] = {
        "simple_get_class_obj": ((LIBRARY_NAME, "__name__"), lambda found: found == package.__name__),
        # As AutoModel calls it: without the module of pipelines.
        "get_class_obj_and_candidates": (
            (LIBRARY_NAME, "__name__", {}, None, False),
            lambda found: found[0] == package.__name__,
        ),
        "_fetch_class_library_tuple": ((component,), lambda found: found == (LIBRARY_NAME, REGISTERED_CLASSES[0])),
    }
    for name, (arguments, is_ours) in expected.items():
        try:
            works, reason = is_ours(getattr(loading, name)(*arguments)), "another answer"
        except Exception as error:  # whatever another version of diffusers does: it is reported, not passed on
            works, reason = False, f"{type(error).__name__}: {error}"
        if not works:
            _warn_of_missing(f"a {LOADING}.{name} that finds registered classes ({reason})")
            return


def missing_in_diffusers(wanted: str, error: ImportError) -> ImportError:
    """The sentence for a `wanted` class of this package that imports from diffusers what is not there."""
    import diffusers

    return ImportError(
        f"{wanted} needs a part of diffusers that diffusers {diffusers.__version__} does not have ({error}); install "
        f"a tested version: {_remedy()}.",
        name=error.name,
    )


def _warn_of_missing(part: str) -> None:
    import diffusers

    warnings.warn(
        f"diffusers {diffusers.__version__} lacks {part}, so DiffusionPipeline.from_pretrained and AutoModel may not "
        f"find the classes of {__package__}, whose own from_pretrained methods are not affected; to fix this, install "
        f"a tested version: {_remedy()}.",
        RuntimeWarning,
        stacklevel=3,
    )


def _remedy() -> str:
    return f"pip install 'diffusers=={TESTED_DIFFUSERS}'"


def _call_after_import(name: str, function: Callable[[ModuleType], Any]) -> None:
    """Calls `function(module)` as soon as the module has been imported by whomever; now if it has been."""
    if name in sys.modules:
        function(sys.modules[name])
    else:
        sys.meta_path.insert(0, _AfterImport(name, function))


class _AfterImport(MetaPathFinder):
    """Lets the other finders import a module, and calls a function with it right after."""

    def __init__(self, name: str, function: Callable[[ModuleType], Any]):
        self.name = name
        self.function = function

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self.name:
            return None
        others = sys.meta_path[sys.meta_path.index(self) + 1 :]
        spec = next(filter(None, (finder.find_spec(fullname, path, target) for finder in others)), None)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_call(module: ModuleType) -> None:
            execute(module)
            self.function(module)

        spec.loader.exec_module = execute_and_call  # type: ignore[method-assign]
        return spec
