"""Names for the folders of classes that may be called anything."""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

from tcae_diffusers.data.images.folder import IMAGE_EXTENSIONS
from tcae_diffusers.data.images.sample_manifest import MANIFEST, SETTINGS

# Room for a suffix on file systems that allow 255 bytes.
_MOST_BYTES = 200
# What separates paths or means something else on some system, and what cannot be seen.
_NOT_IN_A_FILE_NAME = re.compile(r'[/\\:*?"<>|]')
_NUMBERED = "class-"


def class_folders(class_names: Sequence[str]) -> list[str]:
    """
    A folder name for each class, all different, also where upper and lower case are the same.

    The class name itself, if it can be the name of a folder anywhere; else `class-<label>`, followed by what of the
    name can be kept. The class names themselves are in the manifest.
    """
    same = Counter(map(_as_file_systems_compare, class_names))
    width = len(str(len(class_names) - 1))
    return [
        name
        if _can_be_a_folder(name) and same[_as_file_systems_compare(name)] == 1
        else f"{_NUMBERED}{label:0{width}d}_{re.sub('[^A-Za-z0-9]+', '-', name)[:40]}".rstrip("_-")
        for label, name in enumerate(class_names)
    ]


def _as_file_systems_compare(name: str) -> str:
    return unicodedata.normalize("NFC", name.casefold())


def _can_be_a_folder(name: str) -> bool:
    lowered = name.lower()
    return (
        name.isprintable()
        and 0 < len(name.encode("utf-8", "replace")) <= _MOST_BYTES
        and not _NOT_IN_A_FILE_NAME.search(name)
        and name == name.strip(" .")
        and not lowered.startswith(_NUMBERED)
        and not lowered.endswith(IMAGE_EXTENSIONS)
        and lowered not in (MANIFEST, SETTINGS)
    )
