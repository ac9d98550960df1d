"""
The models of this package that diffusers saves and loads by name. It calls the library of a class as the folder is
called that holds the class's file, hence `tcae`; see `tcae_diffusers.registration`.
"""

from .. import conversion  # noqa: F401  enters AutoencoderTC among what diffusers loads from single files
