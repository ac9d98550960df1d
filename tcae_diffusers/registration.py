"""Makes diffusers know the classes of this package, so that plain `DiffusionPipeline.from_pretrained` finds them.

diffusers 0.42 resolves the library name of a component in `model_index.json` in three ways: a library on its list, a
module of `diffusers.pipelines`, or a module that the process has imported already; and a repository on the Hub may use
the first two only. So `["tcae", "AutoencoderTC"]` is what a pipeline saves, and this file makes
`diffusers.pipelines.tcae` exist:

- `diffusers.AutoencoderTC`, ... : where `DiffusionPipeline` and `AutoModel` look a class name up;
- `diffusers.pipelines.tcae`: where they look a component's library name up, and what the Hub check accepts;
- `__module__` of each class is `tcae_diffusers.tcae.<file>`: the name from which diffusers derives `tcae` when it
  saves. It begins with this package, so that a pickle of a model imports us when a fresh process loads it.
"""

import importlib
import importlib.machinery
import importlib.util
import sys
import warnings
from types import ModuleType

import diffusers
from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES
from packaging.version import Version

from .models.conversion import map_single_file_checkpoint

# The loading internals that this file relies on were tested with these; see tests/pipelines/test_registration.py.
TESTED_DIFFUSERS = (Version("0.42.0"), Version("0.43.0"))

LIBRARY_NAME = "tcae"
REGISTERED_CLASSES = {
    "AutoencoderTC": "tcae_diffusers.models.autoencoder_tc",
    "TCDiTTransformer2DModel": "tcae_diffusers.models.transformer_tc_dit",
    "TCDiTPipeline": "tcae_diffusers.pipelines.pipeline_tc_dit",
}


def register_with_diffusers() -> ModuleType:
    """
    Registers this package's classes with diffusers; called by `import tcae_diffusers`, and harmless when called again.

    Returns:
        The module that holds the classes, `diffusers.pipelines.tcae`.

    Raises:
        ImportError: if diffusers already has a class of one of our names, which we must not replace silently.
    """
    first, beyond = TESTED_DIFFUSERS
    if not first <= Version(diffusers.__version__) < beyond:
        warnings.warn(
            f"tcae_diffusers was tested with diffusers >={first},<{beyond} and this is {diffusers.__version__}: "
            f"loading and saving pipelines by name may fail. To mend: `pip install 'diffusers>={first},<{beyond}'`.",
            RuntimeWarning,
            stacklevel=2,
        )

    holder = _ensure_module(f"diffusers.pipelines.{LIBRARY_NAME}")
    _ensure_module(f"tcae_diffusers.{LIBRARY_NAME}", holder)
    for class_name, defined_in in REGISTERED_CLASSES.items():
        module = importlib.import_module(defined_in)
        cls = getattr(module, class_name)
        existing = getattr(diffusers, class_name, cls)
        if existing is not cls:
            raise ImportError(
                f"diffusers {diffusers.__version__} has its own {class_name} ({existing.__module__}), which this "
                f"package would hide; install a tested version: `pip install 'diffusers>={first},<{beyond}'`."
            )
        saved_module_name = f"tcae_diffusers.{LIBRARY_NAME}.{defined_in.rsplit('.', 1)[-1]}"
        sys.modules[saved_module_name] = module
        cls.__module__ = saved_module_name
        setattr(holder, class_name, cls)
        setattr(diffusers, class_name, cls)
    setattr(diffusers.pipelines, LIBRARY_NAME, holder)
    # Read by from_single_file, which refuses every class that is not in this table.
    SINGLE_FILE_LOADABLE_CLASSES["AutoencoderTC"] = {"checkpoint_mapping_fn": map_single_file_checkpoint}
    return holder


def _ensure_module(name: str, module: ModuleType | None = None) -> ModuleType:
    """The module of that name in `sys.modules`; an empty one is made, or `module` entered, if there is none."""
    if name not in sys.modules:
        spec = importlib.machinery.ModuleSpec(name, loader=None)
        sys.modules[name] = importlib.util.module_from_spec(spec) if module is None else module
    return sys.modules[name]
