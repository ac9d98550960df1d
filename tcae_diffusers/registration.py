"""
Makes diffusers know the classes of this package, so that plain `DiffusionPipeline.from_pretrained` finds them.

diffusers 0.42 resolves the library name of a component in `model_index.json` in three ways: a library on its list, a
module of `diffusers.pipelines`, or a module that the process has imported already; and a repository on the Hub may use
the first two only. So `["tcae", "AutoencoderTC"]` is what a pipeline saves, and it is found through

- `diffusers.AutoencoderTC`, ... : where `DiffusionPipeline` and `AutoModel` look a class name up;
- `diffusers.pipelines.tcae`: where they look a component's library name up, and what the Hub check accepts; it is this
  package itself.

When it saves, diffusers takes `tcae` from the name of the folder that the classes lie in, `models/tcae`.

All of this is by name: no class is imported before it is asked for. diffusers itself takes seconds to import, so this
waits until somebody does.
"""

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from packaging.version import Version

# The loading internals that this file relies on were tested with these; see tests/pipelines/test_registration.py.
TESTED_DIFFUSERS = (Version("0.42.0"), Version("0.43.0"))

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


def register_when_diffusers_is_imported() -> None:
    """Calls [`register_with_diffusers`] after the first import of diffusers; now if that has been."""
    if "diffusers" in sys.modules:
        register_with_diffusers()
    else:
        sys.meta_path.insert(0, _AfterDiffusers())


def register_with_diffusers() -> ModuleType:
    """
    Registers this package's classes with diffusers, which it imports; harmless when called again.

    Returns:
        The module that has the classes as attributes, `diffusers.pipelines.tcae`.

    Raises:
        ImportError: if diffusers already has a class of one of our names, which we must not replace silently.
    """
    import diffusers
    import diffusers.pipelines

    first, beyond = TESTED_DIFFUSERS
    if not first <= Version(diffusers.__version__) < beyond:
        warnings.warn(
            f"tcae_diffusers was tested with diffusers >={first},<{beyond} and this is {diffusers.__version__}: "
            "loading and saving pipelines by name may fail. To fix this, run `pip install "
            f"'diffusers>={first},<{beyond}'`.",
            RuntimeWarning,
            stacklevel=2,
        )
    for class_name in set(dir(diffusers)).intersection(REGISTERED_CLASSES):
        defined_in = getattr(diffusers, class_name).__module__
        if not defined_in.startswith(f"{__package__}."):
            raise ImportError(
                f"diffusers {diffusers.__version__} has its own {class_name} ({defined_in}), which this "
                f"package would hide; install a tested version: `pip install 'diffusers>={first},<{beyond}'`."
            )

    package = importlib.import_module(__package__)

    def class_of_this_package(name: str) -> Any:
        if name in REGISTERED_CLASSES:
            return getattr(package, name)
        raise AttributeError(f"module 'diffusers' has no attribute {name!r}")

    # Asked for a name that the module does not have (PEP 562), before diffusers' own way of importing what is used.
    diffusers.__getattr__ = class_of_this_package
    sys.modules[f"diffusers.pipelines.{LIBRARY_NAME}"] = package
    setattr(diffusers.pipelines, LIBRARY_NAME, package)
    return package


class _AfterDiffusers(MetaPathFinder):
    """Lets the other finders import diffusers, and registers our classes right after."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "diffusers":
            return None
        others = sys.meta_path[sys.meta_path.index(self) + 1 :]
        spec = next(filter(None, (finder.find_spec(fullname, path, target) for finder in others)), None)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_register(module: ModuleType) -> None:
            execute(module)
            register_with_diffusers()

        spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec
